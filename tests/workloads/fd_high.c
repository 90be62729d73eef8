// SPDX-License-Identifier: Apache-2.0
/* Descriptors at high and scattered numbers, with descriptors 0 to 2 closed or replaced. */
/* wl: */
#include "fd.h"
#include <sys/socket.h>

int main(void)
{
	int pair[2];
	struct rlimit limit;
	wl_begin();
	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	int top = limit.rlim_cur > 100000 ? 50000 : (int)limit.rlim_cur / 2;
	int file = fd_make("file", "abc");
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	MUST(dup3(file, top - 1, O_CLOEXEC));
	MUST(dup2(pair[0], top - 2));
	MUST(dup2(pair[1], top / 2));
	close(file);
	close(pair[0]);
	close(pair[1]);
	close(0);
	MUST(dup2(top / 2, 2));
	struct fd_facts was[] = {fd_look(top - 1), fd_look(top - 2), fd_look(top / 2), fd_look(2)};
	wl_ready_wait();
	for (int i = 0; i < 4; i++)
		fd_check(&was[i], (const char *[]){"top", "below", "middle", "two"}[i]);
	for (int fd = 0; fd < 1000; fd++) {
		bool expected = fd == 1 || fd == 2 || fd == top - 1 || fd == top - 2 || fd == top / 2;
		CHECK((fcntl(fd, F_GETFD) != -1) == expected, "descriptor %d is %s", fd, expected ? "gone" : "new");
	}
	CHECK(fd_same(2, top / 2), "duplicates are apart");
	fd_put(top - 2, "hello", 5);
	fd_expect_text(2, "hello", "socket");
	MUST(lseek(top - 1, 0, SEEK_SET));
	fd_expect_text(top - 1, "abc", "file");
	wl_pass();
}
