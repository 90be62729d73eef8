// SPDX-License-Identifier: Apache-2.0
/* Mapped files with names that /proc/PID/maps does not show as they are: a newline, and the four characters \\012. */
/* wl: */
#include "wl.h"

static const char *const names[] = {"new\nline", "no\\012newline", "both\n\\012", "back\\slash", "\xff\xfe"};
enum { count = sizeof names / sizeof *names };

int main(void)
{
	char *maps[count];
	struct stat was, now;
	wl_begin();
	for (int i = 0; i < count; i++) {
		int fd = MUST(open(names[i], O_RDWR | O_CREAT | O_EXCL, 0600));
		MUST(ftruncate(fd, WL_PAGE));
		maps[i] = MUST(mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
		maps[i][0] = (char)('a' + i);
		close(fd);
	}
	MUST(stat(names[1], &was));
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		char byte = 0;
		CHECK(maps[i][0] == 'a' + i, "mapping %d is another file", i);
		maps[i][1] = 'x';
		int fd = MUST(open(names[i], O_RDONLY));
		CHECK(pread(fd, &byte, 1, 1) == 1 && byte == 'x', "what was stored in mapping %d is not in its file", i);
		close(fd);
	}
	MUST(stat(names[1], &now));
	CHECK(now.st_ino == was.st_ino && now.st_nlink == 1, "another file");
	wl_pass();
}
