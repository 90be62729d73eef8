// SPDX-License-Identifier: Apache-2.0
/* mlockall(MCL_CURRENT | MCL_FUTURE): all areas locked, and those mapped later as well. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE, length = 16 * page };
	int flagged;
	wl_begin();
	MUST(setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){8 << 20, 8 << 20}));
	char *before = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(before, length, 1);
	MUST(mlockall(MCL_CURRENT | MCL_FUTURE));
	wl_ready_wait();
	wl_same(before, length, 1, "memory");
	wl_smaps_kb(before, before + length, "Rss", "lo", &flagged);
	CHECK(flagged == 1, "no longer locked");
	char *after = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	long rss = wl_smaps_kb(after, after + length, "Rss", "lo", &flagged);
	CHECK(flagged >= 1 && rss >= length / 1024, "MCL_FUTURE is forgotten: %d locked, %ld kB present", flagged, rss);
	wl_pass();
}
