// SPDX-License-Identifier: Apache-2.0
/* A shared mapping of a file, in two processes: stores are seen by the other and reach the file.
 * A sparse file of 5 GiB, with no descriptor left, is mapped shared and private, at its beginning and beyond 4 GiB. */
/* wl: */
#define _FILE_OFFSET_BITS 64
#include "wl.h"

enum { page = WL_PAGE, pages = 16 };
static const off_t far = (1LL << 32) + 16 * page;
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
	fd = MUST(open("vast", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(fd, 5LL << 30));
	char *begin = MUST(mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	char *private = MUST(mmap(NULL, page, PROT_READ, MAP_PRIVATE, fd, 0));
	char *there = MUST(mmap(NULL, page, PROT_READ, MAP_SHARED, fd, far));
	wl_fill(begin, page, 2);
	wl_fill(begin + page, page, 3);
	CHECK(pwrite(fd, begin + page, page, far) == page, "pwrite");
	close(fd);
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
	wl_same(begin, page, 2, "the vast file's beginning");
	wl_same(private, page, 2, "the vast file's beginning, mapped private");
	wl_same(there, page, 3, "the vast file beyond 4 GiB");
	CHECK(mprotect(reader, page, PROT_READ | PROT_WRITE) == 0, "a writable shared file may be mapped for writing later");
	wl_pass();
}
