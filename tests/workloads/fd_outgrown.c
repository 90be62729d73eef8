// SPDX-License-Identifier: Apache-2.0
/* A file that was opened without O_LARGEFILE, and has since grown to 3 GiB: 32-bit machines cannot open it so again. */
/* wl: refused=which_32-bit_machines_need */
#include "fd.h"

int main(void)
{
	wl_begin();
	if (sizeof(long) > 4)
		wl_skip("only 32-bit machines open files without O_LARGEFILE");
	int fd = fd_make("file", "small");
	CHECK(!(MUST(fcntl(fd, F_GETFL)) & O_LARGEFILE), "it has O_LARGEFILE");
	MUST(truncate64("file", 3LL << 30));
	wl_ready_wait();
	CHECK(pread(fd, (char[5]){0}, 5, 0) == 5, "pread");
	wl_pass();
}
