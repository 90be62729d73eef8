// SPDX-License-Identifier: Apache-2.0
/* Names of anonymous areas (PR_SET_VMA_ANON_NAME), private and shared. */
/* wl: */
#include "wl.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static bool named(const char *name, const void *at)
{
	char line[512], start[32];
	bool found = false;
	snprintf(start, sizeof start, "%lx-", (unsigned long)(uintptr_t)at);
	FILE *file = fopen("/proc/self/maps", "re");
	CHECK(file, "maps");
	while (fgets(line, sizeof line, file))
		if (!strncmp(line, start, strlen(start))) {
			line[strcspn(line, "\n")] = 0;
			char *last = strchr(line, '[');
			found = last && !strcmp(last, name);
		}
	fclose(file);
	return found;
}

int main(void)
{
	enum { page = WL_PAGE, length = 6 * page };
	wl_begin();
	char *memory = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *common = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	wl_fill(memory, length, 1);
	wl_fill(common, length, 2);
	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, memory, 2 * page, "first name"))
		wl_skip("no names of areas: %s", strerror(errno));
	/* neighbours that differ in nothing but their names; 79 characters are the most */
	MUST(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, memory + 2 * page, 2 * page, "second: <with> signs!"));
	MUST(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, memory + 4 * page, page,
		   "0123456789012345678901234567890123456789012345678901234567890123456789012345678"));
	bool shared_too = prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, common, length, "shared name") == 0;
	wl_ready_wait();
	CHECK(named("[anon:first name]", memory), "the first name is lost");
	CHECK(named("[anon:second: <with> signs!]", memory + 2 * page), "the second name is lost");
	CHECK(named("[anon:0123456789012345678901234567890123456789012345678901234567890123456789012345678]", memory + 4 * page), "the long name is lost");
	if (shared_too)
		CHECK(named("[anon_shmem:shared name]", common), "the name of shared memory is lost");
	wl_same(memory, length, 1, "private");
	wl_same(common, length, 2, "shared");
	wl_pass();
}
