// SPDX-License-Identifier: Apache-2.0
/* Shared anonymous memory of three processes, mapped twice in one, in part in another, unmapped in its maker. */
/* wl: */
#include "wl.h"

enum { page = WL_PAGE, pages = 64 };
static char *first, *second;

static void child(void *keep)
{
	if (!keep)
		MUST(munmap(first, 32 * page)); /* holds the upper half only */
	wl_child_ready_wait();
	if (keep) {
		wl_same(first, page, 1, "page 0 in a child");
		wl_fill(first + 40 * page, page, 40);
	} else {
		wl_same(first + 40 * page, page, 40, "the sibling's store");
		wl_fill(first + 41 * page, page, 41);
	}
	_exit(0);
}

int main(void)
{
	wl_begin();
	first = MUST(mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	second = MUST(mremap(first, 0, pages * page, MREMAP_MAYMOVE)); /* old size 0: the same memory once more */
	char *orphaned = MUST(mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	CHECK(second != first, "mremap");
	wl_fill(first, page, 1);
	wl_fill(first + 50 * page, page, 50);
	wl_fill(orphaned, 4 * page, 4);
	pid_t one = wl_child(child, (void *)1), two = wl_child(child, NULL);
	MUST(munmap(first + 50 * page, 14 * page)); /* these pages are still in the children and in `second` */
	wl_ready_wait();
	wl_same(second, page, 1, "page 0, mapped again");
	wl_same(second + 50 * page, page, 50, "page 50, unmapped here once");
	wl_same(orphaned, 4 * page, 4, "memory shared with children that have never used it");
	wl_end(one);
	wl_same(second + 40 * page, page, 40, "a child's store, mapped again");
	wl_end(two);
	wl_same(first + 41 * page, page, 41, "the other child's store");
	wl_zero(first + 20 * page, 10 * page, "pages never touched");
	wl_pass();
}
