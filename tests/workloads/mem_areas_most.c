// SPDX-License-Identifier: Apache-2.0
/* As many areas as the kernel allows (vm.max_map_count): Torpor finds no room for its own there, and says so. */
/* wl: refused=areas_of_memory */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE, most = 1 << 20 };
	wl_begin();
	if (getenv("WL_FEWER"))
		wl_skip("too slow on an emulated machine");
	char *at = MUST(mmap(NULL, (size_t)most * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	int made = 0;
	while (made < most / 2 && mprotect(at + 2UL * (size_t)made * page, page, PROT_READ) == 0)
		made++;
	if (made == most / 2)
		wl_skip("%d areas and more are allowed", most);
	/* the C library needs some itself, for the next lines */
	for (int i = 0; i < 2; i++)
		MUST(mprotect(at + 2UL * (size_t)--made * page, page, PROT_NONE));
	wl_ready_wait();
	CHECK(mprotect(at + 2UL * (size_t)made * page, page, PROT_READ) == 0, "no room for two more");
	wl_pass();
}
