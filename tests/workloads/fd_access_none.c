// SPDX-License-Identifier: Apache-2.0
/* Access mode 3: a file that can neither be read nor written, as programs open devices for ioctl(2) alone. */
/* wl: */
#include "fd.h"

int main(void)
{
	wl_begin();
	close(fd_make("file", "content"));
	int fds[] = {MUST(open("file", O_ACCMODE)), MUST(open("/dev/null", O_ACCMODE | O_NONBLOCK))};
	struct fd_facts was[] = {fd_look(fds[0]), fd_look(fds[1])};
	wl_ready_wait();
	for (int i = 0; i < 2; i++) {
		fd_check_inode(&was[i], i ? "device" : "file");
		fd_expect_error(fds[i], EBADF, "access mode 3");
		CHECK(write(fds[i], "x", 1) == -1 && errno == EBADF, "can be written");
	}
	wl_pass();
}
