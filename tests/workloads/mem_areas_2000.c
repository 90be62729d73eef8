// SPDX-License-Identifier: Apache-2.0
/* 2,000 areas (200 in guests), every second of another protection, each with content of its own. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE, most = 1000 };
	wl_begin();
	int count = wl_many(most);
	char *memory = MUST(mmap(NULL, 4L * count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < count; i++) {
		wl_fill(memory + 4L * i * page, page, (uint64_t)i);
		wl_fill(memory + (4L * i + 2) * page, page, 5000 + (uint64_t)i);
		MUST(mprotect(memory + (4L * i + 2) * page, 2 * page, i % 2 ? PROT_READ : PROT_READ | PROT_EXEC));
	}
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		wl_same(memory + 4L * i * page, page, (uint64_t)i, "a writable area");
		wl_zero(memory + (4L * i + 1) * page, page, "its second page");
		wl_same(memory + (4L * i + 2) * page, page, 5000 + (uint64_t)i, "a read-only area");
		memory[(4L * i + 1) * page] = 1;
	}
	wl_pass();
}
