// SPDX-License-Identifier: Apache-2.0
/* Guard pages made with MADV_GUARD_INSTALL: no area of their own, SIGSEGV when touched; gone after GUARD_REMOVE. */
/* wl: */
#include "wl.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

int main(void)
{
	enum { page = WL_PAGE, pages = 64 };
	wl_begin();
	char *memory = MUST(mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	wl_fill(memory, pages * page, 1);
	if (madvise(memory + 10 * page, page, MADV_GUARD_INSTALL))
		wl_skip("no MADV_GUARD_INSTALL: %s", strerror(errno));
	MUST(madvise(memory + 20 * page, 10 * page, MADV_GUARD_INSTALL));
	MUST(madvise(memory, page, MADV_GUARD_INSTALL));
	MUST(madvise(memory + 25 * page, page, MADV_GUARD_REMOVE)); /* a zero page in the middle */
	wl_ready_wait();
	for (int i = 0; i < pages; i++) {
		bool guard = i == 0 || i == 10 || (i >= 20 && i < 30 && i != 25);
		bool closed = pwrite(fd, memory + i * page, page, 0) == -1;
		CHECK(guard == closed, "page %d %s a guard page", i, closed ? "has become" : "is no longer");
		if (i == 25)
			wl_zero(memory + i * page, page, "a page whose guard was removed");
		else if (!guard)
			for (int j = 0; j < page / 8; j++)
				CHECK(((uint64_t *)(memory + i * page))[j] == wl_word(1, (uint64_t)(i * page / 8 + j)), "page %d changed", i);
	}
	MUST(madvise(memory + 20 * page, page, MADV_GUARD_REMOVE));
	wl_zero(memory + 20 * page, page, "a page whose guard was removed now");
	wl_pass();
}
