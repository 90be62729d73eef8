// SPDX-License-Identifier: Apache-2.0
/* Locked memory: mlock, MLOCK_ONFAULT, and what is not locked beside it. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE, length = 16 * page };
	char text[64];
	int flagged;
	wl_begin();
	char *locked = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *onfault = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *by_flag = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0));
	wl_fill(locked, length, 1);
	wl_fill(by_flag, page, 3);
	MUST(mlock(locked + 4 * page, 4 * page));
	MUST((int)syscall(SYS_mlock2, onfault, (size_t)length, 1 /* MLOCK_ONFAULT */));
	wl_fill(onfault, 2 * page, 2);
	wl_ready_wait();
	wl_proc_field("/proc/self/status", "VmLck", text, sizeof text);
	CHECK(atol(text) == 36 * (page / 1024), "locked is %s", text);
	wl_smaps_kb(locked + 4 * page, locked + 8 * page, "Rss", "lo", &flagged);
	CHECK(flagged == 1, "not locked");
	wl_smaps_kb(locked, locked + page, "Rss", "lo", &flagged);
	CHECK(flagged == 0, "more is locked than was");
	wl_same(locked, length, 1, "locked");
	wl_same(onfault, 2 * page, 2, "locked on fault");
	wl_same(by_flag, page, 3, "locked by mmap");
	wl_zero(onfault + 2 * page, length - 2 * page, "locked on fault, not touched");
	/* ON_FAULT: pages that were not touched before are there now, because we looked; a new one is not */
	MUST(munlock(locked + 4 * page, 4 * page));
	MUST(munlock(onfault, length));
	MUST(munlock(by_flag, length));
	wl_proc_field("/proc/self/status", "VmLck", text, sizeof text);
	CHECK(atol(text) == 0, "locked after munlock is %s", text);
	wl_pass();
}
