// SPDX-License-Identifier: Apache-2.0
/* Areas below 64 KiB, down to address 0, as Wine and DOS emulators have them (vm.mmap_min_addr). */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE };
	wl_begin();
	char *first = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (first == MAP_FAILED)
		wl_skip("address 0 cannot be mapped: %s", strerror(errno));
	__asm__("" : "+r"(first)); /* to the compiler, address 0 is none */
	char *second = MUST(mmap((void *)(8 * page), 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	wl_fill(first, page, 1);
	wl_fill(second, 2 * page, 2);
	wl_ready_wait();
	wl_same(first, page, 1, "at address 0");
	wl_same(second, 2 * page, 2, "at a low address");
	wl_pass();
}
