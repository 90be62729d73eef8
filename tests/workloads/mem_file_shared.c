// SPDX-License-Identifier: Apache-2.0
/* A shared mapping of a file, in two processes: stores are seen by the other and reach the file. */
/* wl: */
#include "wl.h"

enum { page = WL_PAGE, pages = 16 };
static char *map;

static void child(void *unused)
{
	(void)unused;
	wl_child_ready_wait();
	wl_same(map + 3 * page, page, 33, "the parent's store");
	wl_fill(map + 5 * page, page, 55);
	_exit(0);
}

int main(void)
{
	static char now[page];
	wl_begin();
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(fd, pages * page));
	map = MUST(mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	char *reader = MUST(mmap(NULL, 4 * page, PROT_READ, MAP_SHARED, fd, 4 * page));
	close(fd);
	wl_fill(map, page, 1);
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	wl_same(map, page, 1, "page 0");
	wl_fill(map + 3 * page, page, 33);
	wl_end(pid);
	wl_same(map + 5 * page, page, 55, "the child's store");
	wl_same(reader + page, page, 55, "the child's store, seen in the other mapping");
	fd = MUST(open("file", O_RDONLY));
	CHECK(pread(fd, now, page, 5 * page) == page, "pread");
	wl_same(now, page, 55, "the child's store, read from the file");
	CHECK(mprotect(reader, page, PROT_READ | PROT_WRITE) == 0, "a writable shared file may be mapped for writing later");
	wl_pass();
}
