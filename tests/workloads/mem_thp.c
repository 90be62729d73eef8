// SPDX-License-Identifier: Apache-2.0
/* Huge pages asked for by madvise: content, and the advice, which gives huge pages for fresh memory, too. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE };
	const size_t huge = 2UL << 20, length = 8 * huge;
	int flagged;
	wl_begin();
	char *raw = MUST(mmap(NULL, length + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *memory = (char *)(((uintptr_t)raw + huge - 1) & ~(huge - 1));
	if (memory > raw)
		MUST(munmap(raw, (size_t)(memory - raw)));
	if (madvise(memory, length, MADV_HUGEPAGE))
		wl_skip("no huge pages by madvise: %s", strerror(errno));
	wl_fill(memory, 3 * huge, 1);                      /* whole huge pages */
	wl_fill(memory + 4 * huge + 5 * page, page, 2);    /* one written page inside a huge one */
	char *refused = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(refused, length, MADV_NOHUGEPAGE));
	wl_fill(refused, huge, 3);
	long before = wl_smaps_kb(memory, memory + length, "AnonHugePages", "hg", &flagged);
	CHECK(flagged == 1, "%d areas have the flag hg", flagged);
	wl_ready_wait();
	wl_smaps_kb(memory, memory + length, "Rss", "hg", &flagged);
	CHECK(flagged >= 1, "the advice is lost");
	wl_smaps_kb(refused, refused + length, "Rss", "nh", &flagged);
	CHECK(flagged >= 1, "the advice against huge pages is lost");
	wl_same(memory, 3 * huge, 1, "huge pages");
	wl_zero(memory + 3 * huge, huge, "a huge page never touched");
	wl_zero(memory + 4 * huge, 5 * page, "before the written page");
	wl_same(memory + 4 * huge + 5 * page, page, 2, "the written page");
	wl_same(refused, huge, 3, "memory without huge pages");
	memory[7 * huge] = 1;
	if (before)
		CHECK(wl_smaps_kb(memory + 7 * huge, memory + 8 * huge, "AnonHugePages", NULL, NULL) > 0, "fresh memory is not huge");
	wl_pass();
}
