// SPDX-License-Identifier: Apache-2.0
/* Regular files: access mode, flags, position, append, close-on-exec, beyond 4 GiB, beyond the end; changed in 2100. */
/* wl: */
#define _FILE_OFFSET_BITS 64
#define _TIME_BITS 64
#include "fd.h"

static const struct {
	int flags;
	off_t position;
} cases[] = {
	{O_RDONLY, 0},
	{O_RDONLY, 7},
	{O_WRONLY, 5},
	{O_RDWR, 3},
	{O_RDWR | O_APPEND, 4},
	{O_RDWR | O_CLOEXEC, 9},
	{O_WRONLY | O_APPEND | O_CLOEXEC, 2},
	{O_RDWR | O_NONBLOCK, 1},
	{O_RDWR | O_SYNC, 2},
	{O_RDWR | O_DSYNC, 3},
	{O_RDONLY | O_NOATIME, 4},
	{O_RDWR | O_NOFOLLOW, 5},
	{O_RDWR, 5000000000},
	{O_RDONLY | O_LARGEFILE, 1 << 20},
};

int main(void)
{
	enum { count = sizeof cases / sizeof *cases };
	struct fd_facts was[count];
	wl_begin();
	close(fd_make("file", "0123456789"));
	for (int i = 0; i < count; i++) {
		int fd = MUST(open("file", cases[i].flags));
		MUST(lseek(fd, cases[i].position, SEEK_SET));
		was[i] = fd_look(fd);
	}
	int late = fd_make("late", "");
	MUST(futimens(late, (struct timespec[]){{4102444800, 5}, {4102444800, 7}}));
	struct fd_facts were = fd_look(late);
	wl_ready_wait();
	fd_check_inode(&were, "late");
	CHECK(fd_look(late).stat.st_mtim.tv_sec == were.stat.st_mtim.tv_sec, "changed at %lld", (long long)fd_look(late).stat.st_mtim.tv_sec);
	for (int i = 0; i < count; i++) {
		char what[40];
		snprintf(what, sizeof what, "case %d", i);
		fd_check_inode(&was[i], what);
		for (int j = 0; j < i; j++)
			CHECK(!fd_same(was[i].fd, was[j].fd), "descriptions %d and %d are one", i, j);
	}
	fd_expect_text(was[1].fd, "789", "read from the position");
	fd_put(was[2].fd, "X", 1);
	fd_put(was[4].fd, "A", 1); /* appended, and its position moves there */
	CHECK(lseek(was[4].fd, 0, SEEK_CUR) == 11, "append went to %ld", (long)lseek(was[4].fd, 0, SEEK_CUR));
	fd_expect_text(was[0].fd, "01234X6789A", "whole file");
	CHECK(write(was[1].fd, "x", 1) == -1 && errno == EBADF, "read-only file can be written");
	CHECK(read(was[2].fd, (char[1]){0}, 1) == -1 && errno == EBADF, "write-only file can be read");
	wl_pass();
}
