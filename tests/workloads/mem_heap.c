// SPDX-License-Identifier: Apache-2.0
/* The heap: brk grown and shrunk in steps, malloc before and after. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { blocks = 400, page = WL_PAGE };
	static char *kept[blocks];
	wl_begin();
	for (int i = 0; i < blocks; i++) {
		kept[i] = malloc(1000 + (size_t)i * 8);
		wl_fill(kept[i], 1000 + (size_t)i * 8, (uint64_t)i);
	}
	for (int i = 0; i < blocks; i += 3)
		free(kept[i]);
	char *low = MUST(sbrk(3 * page + 24)); /* the end of the heap is not on a page */
	memset(low, 'x', 3 * page + 24);
	char *top = MUST(sbrk(0));
	wl_ready_wait();
	char *now = MUST(sbrk(0));
	CHECK(now == top, "the heap ends at %p, ended at %p", (void *)now, (void *)top);
	for (int i = 0; i < 3 * page + 24; i++)
		CHECK(low[i] == 'x', "byte %d of the heap's end is %d", i, low[i]);
	for (int i = 0; i < blocks; i++)
		if (i % 3)
			wl_same(kept[i], (1000 + (size_t)i * 8) & ~7UL, (uint64_t)i, "a malloc'ed block");
	/* grow, shrink below where it was, grow */
	CHECK(MUST(sbrk(100 * page)) == (void *)top, "growth starts elsewhere");
	wl_zero(top + page, 99 * page, "fresh heap");
	memset(top, 'y', 100 * page);
	MUST(sbrk(-102 * page));
	CHECK(MUST(sbrk(0)) == (void *)(top - 2 * page), "shrinking went elsewhere");
	char *again = MUST(sbrk(50 * page));
	wl_zero(again + 2 * page, 40 * page, "heap grown again");
	for (int i = 0; i < 1000; i++)
		free(malloc((size_t)i * 100));
	wl_pass();
}
