// SPDX-License-Identifier: Apache-2.0
/* O_PATH descriptors of a file, a directory and a symbolic link. */
/* wl: */
#include "fd.h"

int main(void)
{
	char target[20] = "";
	wl_begin();
	close(fd_make("file", "content"));
	MUST(mkdir("directory", 0700));
	MUST(symlink("file", "link"));
	int fds[] = {MUST(open("file", O_PATH)), MUST(open("directory", O_PATH)),
		     MUST(open("link", O_PATH | O_NOFOLLOW | O_CLOEXEC))};
	struct fd_facts was[3];
	for (int i = 0; i < 3; i++)
		was[i] = fd_look(fds[i]);
	wl_ready_wait();
	for (int i = 0; i < 3; i++) {
		fd_check_inode(&was[i], (const char *[]){"file", "directory", "symbolic link"}[i]);
		CHECK(fcntl(fds[i], F_GETFL) & O_PATH, "%d is no O_PATH descriptor any more", i);
		fd_expect_error(fds[i], EBADF, "O_PATH");
	}
	CHECK(S_ISLNK(was[2].stat.st_mode), "no link at the start");
	CHECK(readlinkat(fds[2], "", target, sizeof target) == 4 && !strcmp(target, "file"), "link leads to %s", target);
	close(MUST(openat(fds[1], "new", O_CREAT | O_WRONLY, 0600)));
	char path[40];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fds[0]);
	int again = MUST(open(path, O_RDONLY));
	fd_expect_text(again, "content", "reopened");
	wl_pass();
}
