// SPDX-License-Identifier: Apache-2.0
/* MAP_DROPPABLE memory (what getrandom in the vDSO uses): its content may go, and does so at a restore, or the same
 * numbers would be made again; the area and its flag stay. */
/* wl: */
#include "wl.h"

#include <sys/random.h>
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

/* When this process began: a restored one did so at its restore. */
static unsigned long long begun(void)
{
	char line[1024] = "", *at;
	int fd = MUST(open("/proc/self/stat", O_RDONLY));
	MUST(read(fd, line, sizeof line - 1));
	close(fd);
	at = strrchr(line, ')') + 1;
	for (int i = 0; i < 20; i++)
		at = strchr(at + 1, ' ');
	return strtoull(at, NULL, 10);
}

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
	unsigned long long then = begun();
	wl_ready_wait();
	wl_smaps_kb(memory, memory + length, "Rss", "dp", &flagged);
	CHECK(flagged == 1, "no longer droppable");
	unsigned first = (unsigned char)memory[0], second = (unsigned char)memory[page], most = begun() == then;
	CHECK(first <= most && second <= most, "bytes are %u and %u, at most %u", first, second, most);
	memory[3 * page] = 1;
	CHECK(getrandom(two, sizeof two, 0) == sizeof two && memcmp(one, two, sizeof two), "getrandom");
	wl_pass();
}
