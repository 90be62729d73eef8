// SPDX-License-Identifier: Apache-2.0
/* Directories: position in the middle of a listing, use for openat and fchdir. */
/* wl: */
#include "fd.h"
#include <dirent.h>

static int names(int fd, size_t size, char seen[200])
{
	struct dirent64 *entry;
	char buffer[4096];
	int total = 0;
	ssize_t n;
	while ((n = MUST(getdents64(fd, buffer, size))) > 0) {
		for (ssize_t at = 0; at < n; at += entry->d_reclen) {
			entry = (struct dirent64 *)(buffer + at);
			if (entry->d_name[0] == 'f') {
				seen[atoi(entry->d_name + 1)]++;
				total++;
			}
		}
		if (size < 200)
			break; /* one small step */
	}
	return total;
}

int main(void)
{
	char seen[200] = {0};
	wl_begin();
	MUST(mkdir("directory", 0750));
	int fd = MUST(open("directory", O_RDONLY));
	int fresh = MUST(open("directory", O_RDONLY | O_CLOEXEC));
	for (int i = 0; i < 200; i++) {
		char name[20];
		snprintf(name, sizeof name, "f%d", i);
		close(MUST(openat(fd, name, O_CREAT | O_WRONLY, 0600)));
	}
	int first = names(fd, 150, seen);
	CHECK(first > 0 && first < 100, "%d names in the first step", first);
	struct fd_facts was = fd_look(fd), fresh_was = fd_look(fresh);
	wl_ready_wait();
	fd_check_inode(&was, "directory");
	fd_check_inode(&fresh_was, "unread directory");
	int rest = names(fd, 4096, seen);
	CHECK(first + rest == 200, "%d names before, %d after", first, rest);
	for (int i = 0; i < 200; i++)
		CHECK(seen[i] == 1, "name f%d seen %d times", i, seen[i]);
	MUST(faccessat(fresh, "f7", F_OK, 0));
	MUST(fchdir(fresh));
	MUST(access("f7", F_OK));
	wl_pass();
}
