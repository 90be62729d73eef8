// SPDX-License-Identifier: Apache-2.0
/* Anonymous private memory: every byte of it, written, read-only and executable, with neighbours that must not merge. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE, length = 300 * page };
	wl_begin();
	char *plain = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *fixed = MUST(mmap((void *)0x123456780000, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	char *readonly = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(plain, length, 1);
	wl_fill(fixed, length, 2);
	wl_fill(readonly, length, 3);
	MUST(mprotect(readonly, length, PROT_READ));
	/* every third page of `plain` read-only, every third executable: 200 areas out of one */
	for (int i = 0; i < 300; i += 3) {
		MUST(mprotect(plain + i * page, page, PROT_READ));
		MUST(mprotect(plain + (i + 1) * page, page, PROT_READ | PROT_EXEC));
	}
	wl_ready_wait();
	wl_same(plain, length, 1, "plain");
	wl_same(fixed, length, 2, "at a fixed address");
	wl_same(readonly, length, 3, "read-only");
	for (int i = 2; i < 300; i += 3)
		plain[i * page] ^= 1; /* still writable */
	wl_pass();
}
