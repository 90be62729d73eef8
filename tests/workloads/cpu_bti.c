// SPDX-License-Identifier: Apache-2.0
/* Code into which jumps are guarded (PROT_BTI of aarch64): smaps says so, which the harness compares. */
/* wl: */
#include "wl.h"
#ifdef __aarch64__
#include <sys/auxv.h>
#define GUARDED 0x10

int main(void)
{
	int flagged;
	wl_begin();
	if (!(getauxval(AT_HWCAP2) & (1 << 17)))
		wl_skip("this processor guards no jumps");
	uint32_t *code = MUST(mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	code[0] = 0xd503245f; /* bti c */
	code[1] = 0x52800540; /* mov w0, 42 */
	code[2] = 0xd65f03c0; /* ret */
	__builtin___clear_cache((char *)code, (char *)(code + 3));
	MUST(mprotect(code, WL_PAGE, PROT_READ | PROT_EXEC | GUARDED));
	wl_ready_wait();
	wl_smaps_kb(code, (char *)code + WL_PAGE, "Rss", "bt", &flagged);
	CHECK(flagged == 1, "the code is not guarded any more");
	CHECK(((int (*)(void))code)() == 42, "the code is another");
	wl_say("exercised: BTI");
	wl_pass();
}
#else
int main(void) { wl_skip("BTI is aarch64's"); }
#endif
