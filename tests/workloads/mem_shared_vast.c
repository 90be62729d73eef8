// SPDX-License-Identifier: Apache-2.0
/* Shared anonymous memory far larger than the machine's (MAP_NORESERVE), of which little is used. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE };
	/* Without PAGEMAP_SCAN there are eight bytes a page to look at: an emulated machine would take minutes for 4 TiB. */
	size_t length = sizeof(void *) == 4 ? (size_t)256 << 20 : getenv("WL_FEWER") ? (size_t)(16ULL << 30) : (size_t)(4ULL << 40);
	wl_begin();
	char *shared = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	char *private = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	for (size_t i = 0; i < 8; i++) {
		wl_fill(shared + i * (length / 8), page, i);
		wl_fill(private + i * (length / 8), page, i + 8);
	}
	wl_ready_wait();
	for (size_t i = 0; i < 8; i++) {
		wl_same(shared + i * (length / 8), page, i, "shared");
		wl_same(private + i * (length / 8), page, i + 8, "private");
	}
	wl_zero(shared + page, page, "a hole");
	wl_pass();
}
