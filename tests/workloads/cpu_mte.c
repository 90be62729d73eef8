// SPDX-License-Identifier: Apache-2.0
/* Memory tags of aarch64 (MTE): refused, and the program goes on with its tags, which are checked.  A tag a page: QEMU 7.2
 * takes all granules of a page for its first two. */
/* wl: refused=its_memory_is_tagged */
#include "wl.h"
#ifdef __aarch64__
#include <sys/auxv.h>
#ifndef PR_SET_TAGGED_ADDR_CTRL
#define PR_SET_TAGGED_ADDR_CTRL 55
#define PR_GET_TAGGED_ADDR_CTRL 56
#endif
enum { pages = 4, tagged = 0x20, checked = 1 | 1 << 1 | 0xfffe << 3 }; /* PROT_MTE; addresses, faults at once, tags but 0 */

static uint64_t tag_of(char *granule)
{
	uint64_t tag = 0;
	__asm__ volatile(".arch armv8.5-a+memtag\n ldg %0, [%1]" : "+&r"(tag) : "r"(granule) : "memory");
	return tag >> 56;
}

int main(void)
{
	wl_begin();
	if (!(getauxval(AT_HWCAP2) & (1 << 18)))
		wl_skip("this processor tags no memory");
	MUST(prctl(PR_SET_TAGGED_ADDR_CTRL, checked, 0, 0, 0));
	char *area = MUST(mmap(NULL, pages * WL_PAGE, PROT_READ | PROT_WRITE | tagged, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (uint64_t i = 0; i < pages; i++) {
		char *page = (char *)((uintptr_t)(area + i * WL_PAGE) | (i + 1) << 56);
		for (char *granule = page; granule < page + WL_PAGE; granule += 16)
			__asm__ volatile(".arch armv8.5-a+memtag\n stg %0, [%0]" ::"r"(granule) : "memory");
		wl_fill(page, WL_PAGE, i);
	}
	wl_ready_wait();
	CHECK(prctl(PR_GET_TAGGED_ADDR_CTRL, 0, 0, 0, 0) == checked, "tags are not checked as before");
	for (uint64_t i = 0; i < pages; i++) {
		char *page = (char *)((uintptr_t)(area + i * WL_PAGE) | (i + 1) << 56);
		CHECK(tag_of(area + i * WL_PAGE) == i + 1, "page %" PRIu64 " has tag %" PRIu64, i, tag_of(area + i * WL_PAGE));
		wl_same(page, WL_PAGE, i, "a tagged page");
	}
	wl_say("exercised: MTE (refused)");
	wl_pass();
}
#else
int main(void) { wl_skip("MTE is aarch64's"); }
#endif
