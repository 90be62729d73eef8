// SPDX-License-Identifier: Apache-2.0
/* A deleted device node: Torpor makes none, and says so before the program is lost. */
/* wl: refused=Torpor_makes_no_devices */
#include "fd.h"
#include <sys/sysmacros.h>

int main(void)
{
	wl_begin();
	if (mknod("device", S_IFCHR | 0600, makedev(10, 200)) == -1)
		wl_skip("mknod: %s", strerror(errno));
	int fd = MUST(open("device", O_PATH));
	MUST(unlink("device"));
	wl_ready_wait();
	CHECK(fcntl(fd, F_GETFL) & O_PATH, "no O_PATH descriptor any more");
	wl_pass();
}
