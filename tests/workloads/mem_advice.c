// SPDX-License-Identifier: Apache-2.0
/* Every flag that madvise and mmap put on an area: none may be lost, none may appear. */
/* wl: */
#include "wl.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

static const struct {
	const char *what, *flag;
	int map, advice;
} kinds[] = {
	{"MADV_DONTFORK", "dc", 0, MADV_DONTFORK},         {"MADV_DONTDUMP", "dd", 0, MADV_DONTDUMP},
	{"MADV_MERGEABLE", "mg", 0, MADV_MERGEABLE},       {"MADV_WIPEONFORK", "wf", 0, MADV_WIPEONFORK},
	{"MADV_SEQUENTIAL", "sr", 0, MADV_SEQUENTIAL},     {"MADV_RANDOM", "rr", 0, MADV_RANDOM},
	{"MADV_HUGEPAGE", "hg", 0, MADV_HUGEPAGE},         {"MADV_NOHUGEPAGE", "nh", 0, MADV_NOHUGEPAGE},
	{"MAP_NORESERVE", "nr", MAP_NORESERVE, 0},         {"MAP_LOCKED", "lo", MAP_LOCKED, 0},
	{"MAP_GROWSDOWN", "gd", MAP_GROWSDOWN, 0},         {"MAP_STACK", "nh", MAP_STACK, 0},
	{"MAP_POPULATE", "", MAP_POPULATE, 0},             {"shared MADV_DONTFORK", "dc", MAP_SHARED, MADV_DONTFORK},
	{"shared MADV_DONTDUMP", "dd", MAP_SHARED, MADV_DONTDUMP}, {"shared MADV_RANDOM", "rr", MAP_SHARED, MADV_RANDOM},
	{"MAP_NORESERVE shared", "nr", MAP_SHARED | MAP_NORESERVE, 0},
};
enum { count = sizeof kinds / sizeof kinds[0], page = WL_PAGE, length = 8 * page };

int main(void)
{
	char *at[count];
	bool had[count], available[count];
	int flagged;
	wl_begin();
	for (int i = 0; i < count; i++) {
		int kind = kinds[i].map & MAP_SHARED ? 0 : MAP_PRIVATE;
		/* a hole on both sides, so that none merges with its neighbour */
		char *room = MUST(mmap(NULL, 64 * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		MUST(munmap(room, 64 * length));
		at[i] = MUST(mmap(room + 32 * length, length, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS | MAP_FIXED | kinds[i].map, -1, 0));
		wl_fill(at[i], length / 2, (uint64_t)i);
		available[i] = !kinds[i].advice || madvise(at[i], length, kinds[i].advice) == 0;
		CHECK(available[i] || errno == EINVAL, "%s: %s", kinds[i].what, strerror(errno)); /* not configured: not tested */
		wl_smaps_kb(at[i], at[i] + length, "Rss", kinds[i].flag, &flagged);
		had[i] = flagged > 0;
		CHECK(had[i] || !kinds[i].flag[0] || !available[i] || kinds[i].map == MAP_STACK, "%s gives no %s", kinds[i].what, kinds[i].flag);
	}
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		wl_same(at[i], length / 2, (uint64_t)i, kinds[i].what);
		wl_zero(at[i] + length / 2, length / 2, kinds[i].what);
		wl_smaps_kb(at[i], at[i] + length, "Rss", kinds[i].flag, &flagged);
		CHECK((flagged > 0) == had[i], "%s: flag %s is %s", kinds[i].what, kinds[i].flag, had[i] ? "lost" : "new");
	}
	/* what they mean: a fork */
	pid_t child = MUST(fork());
	if (child == 0) {
		unsigned char there;
		CHECK(mincore(at[0], page, &there) == -1 && errno == ENOMEM, "MADV_DONTFORK memory is in the child");
		if (available[3])
			wl_zero(at[3], length, "MADV_WIPEONFORK memory in the child");
		_exit(0);
	}
	wl_reap(child);
	wl_pass();
}
