// SPDX-License-Identifier: Apache-2.0
/* MAP_DROPPABLE memory (what getrandom in the vDSO uses): its content may go, the area and its flag may not. */
/* wl: */
#include "wl.h"

#include <sys/random.h>
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

int main(void)
{
	enum { page = WL_PAGE, length = 8 * page };
	int flagged;
	unsigned char one[32], two[32];
	wl_begin();
	char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		wl_skip("no MAP_DROPPABLE: %s", strerror(errno));
	memory[0] = memory[page] = 1;
	wl_smaps_kb(memory, memory + length, "Rss", "dp", &flagged);
	CHECK(flagged == 1, "%d areas with the flag dp", flagged);
	CHECK(getrandom(one, sizeof one, 0) == sizeof one, "getrandom");
	wl_ready_wait();
	wl_smaps_kb(memory, memory + length, "Rss", "dp", &flagged);
	CHECK(flagged == 1, "no longer droppable");
	CHECK(memory[0] == 0 || memory[0] == 1, "byte is %d", memory[0]);
	memory[3 * page] = 1;
	CHECK(getrandom(two, sizeof two, 0) == sizeof two && memcmp(one, two, sizeof two), "getrandom");
	wl_pass();
}
