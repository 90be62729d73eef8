// SPDX-License-Identifier: Apache-2.0
/* A table of 1,000 descriptors (100 in guests): a tenth as many files opened five times each, every description twice. */
/* wl: */
#include "fd.h"

int main(void)
{
	enum { most = 1000 };
	static struct fd_facts was[most];
	char name[20];
	wl_begin();
	int count = wl_many(most), half = count / 2, files = count / 10;
	struct rlimit limit;
	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	if (limit.rlim_cur < 1100) {
		if (limit.rlim_max < 1100)
			wl_skip("no more than %ld open files allowed", (long)limit.rlim_max);
		limit.rlim_cur = 1100;
		MUST(setrlimit(RLIMIT_NOFILE, &limit));
	}
	for (int i = 0; i < half; i++) {
		snprintf(name, sizeof name, "file%d", i % files);
		int fd = MUST(open(name, (i % 3 ? O_RDWR : O_RDONLY) | O_CREAT | (i % 2 ? O_CLOEXEC : 0), 0600));
		MUST(lseek(fd, i, SEEK_SET));
		was[i] = fd_look(fd);
	}
	for (int i = 0; i < half; i++) {
		int fd = MUST(fcntl(was[i].fd, i % 7 ? F_DUPFD : F_DUPFD_CLOEXEC, 0));
		was[half + i] = fd_look(fd);
	}
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof name, "descriptor %d", was[i].fd);
		fd_check_inode(&was[i], name);
		if (i >= half)
			CHECK(fd_same(was[i].fd, was[i - half].fd), "%s: duplicates are apart", name);
		else if (i >= files)
			CHECK(!fd_same(was[i].fd, was[i - files].fd), "%s: two opens are one", name);
	}
	wl_pass();
}
