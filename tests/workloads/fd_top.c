// SPDX-License-Identifier: Apache-2.0
/* The highest descriptor that RLIMIT_NOFILE allows is in use, and the table is full up to it. */
/* wl: */
#include "fd.h"

int main(void)
{
	struct rlimit limit = {.rlim_cur = 64};
	wl_begin();
	MUST(setrlimit(RLIMIT_NOFILE, &(struct rlimit){64, 64}));
	int fd = fd_make("file", "abc");
	struct fd_facts was = fd_look(fd);
	while (dup(fd) != -1)
		;
	CHECK(errno == EMFILE && fcntl(63, F_GETFD) == 0, "the table is not full");
	wl_ready_wait();
	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	CHECK(limit.rlim_cur == 64 && limit.rlim_max == 64, "limit is %ld", (long)limit.rlim_cur);
	CHECK(dup(fd) == -1 && errno == EMFILE, "there is room in the table");
	fd_check_inode(&was, "file");
	CHECK(fd_same(fd, 63), "duplicates are apart");
	close(63);
	CHECK(dup(fd) == 63, "63 cannot be used again");
	wl_pass();
}
