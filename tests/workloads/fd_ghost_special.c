// SPDX-License-Identifier: Apache-2.0
/* Deleted files that are not regular: a symbolic link held by O_PATH, a FIFO with content, a device node. */
/* wl: */
#include "fd.h"
#include <sys/sysmacros.h>

int main(void)
{
	char target[20] = "";
	wl_begin();
	MUST(symlink("somewhere", "link"));
	MUST(mkfifo("fifo", 0620));
	MUST(mknod("null", S_IFCHR | 0606, makedev(1, 3)));
	int link = MUST(open("link", O_PATH | O_NOFOLLOW));
	int fifo = MUST(open("fifo", O_RDWR | O_NONBLOCK));
	int device = open("null", O_RDWR);
	if (device == -1)
		wl_skip("this file system allows no device nodes");
	MUST(unlink("link"));
	MUST(unlink("fifo"));
	MUST(unlink("null"));
	fd_put(fifo, "in the fifo", 11);
	struct fd_facts was[] = {fd_look(link), fd_look(fifo), fd_look(device)};
	wl_ready_wait();
	for (int i = 0; i < 3; i++)
		fd_check(&was[i], (const char *[]){"link", "fifo", "device"}[i]);
	CHECK(readlinkat(link, "", target, sizeof target) == 9 && !strcmp(target, "somewhere"), "link leads to %s", target);
	fd_expect_text(fifo, "in the fifo", "fifo");
	fd_expect_error(fifo, EAGAIN, "empty fifo");
	fd_put(device, "x", 1);
	fd_expect_end(device, "device");
	wl_pass();
}
