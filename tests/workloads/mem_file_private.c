// SPDX-License-Identifier: Apache-2.0
/* A private mapping of a file: some pages changed (they are its own), others still follow the file. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE, pages = 40 };
	static char content[pages * page];
	wl_begin();
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	wl_fill(content, sizeof content, 1);
	CHECK(write(fd, content, sizeof content) == sizeof content, "write");
	char *whole = MUST(mmap(NULL, sizeof content, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	char *part = MUST(mmap(NULL, 5 * page, PROT_READ, MAP_PRIVATE, fd, 7 * page));
	char *beyond = MUST(mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, (pages - 1) * page));
	char *code = MUST(mmap(NULL, 4 * page, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE, fd, 0));
	close(fd);
	wl_fill(code + page, page, 888); /* as old programs have their data: executable */
	for (int i = 0; i < pages; i += 3)
		wl_fill(whole + i * page, page, 100 + (uint64_t)i);
	wl_fill(beyond, page, 999); /* its second page is beyond the file's end: SIGBUS */
	MUST(mprotect(whole + 30 * page, 10 * page, PROT_READ)); /* changed pages in a read-only area */
	wl_ready_wait();
	for (int i = 0; i < pages; i++) {
		if (i % 3 == 0)
			wl_same(whole + i * page, page, 100 + (uint64_t)i, "a changed page");
		else
			CHECK(!memcmp(whole + i * page, content + i * page, page), "page %d is not the file's", i);
	}
	CHECK(!memcmp(part, content + 7 * page, 5 * page), "the mapping with an offset");
	wl_same(beyond, page, 999, "the last page");
	wl_same(code + page, page, 888, "a page that may be written and executed");
	CHECK(!memcmp(code, content, page), "its neighbour");
	/* a page nobody has changed still follows the file; a changed one does not */
	fd = MUST(open("file", O_RDWR));
	MUST(pwrite(fd, "changed!", 8, 8 * page));
	MUST(pwrite(fd, "changed!", 8, 9 * page));
	CHECK(!memcmp(part + page, "changed!", 8), "an unchanged page does not follow the file any more");
	CHECK(!memcmp(whole + 8 * page, "changed!", 8), "an unchanged page does not follow the file any more");
	wl_same(whole + 9 * page, page, 109, "a changed page");
	wl_pass();
}
