// SPDX-License-Identifier: Apache-2.0
/* A heap of 420 MB right behind the program, of which little is used: on 32-bit ARM it leaves no addresses free below
 * those where a program that just begins may have something. */
/* wl: libs=-no-pie */
#include "wl.h"
#include <sys/personality.h>

enum { step = 4 << 20, size = 105 * step };

int main(int argc, char **argv)
{
	(void)argc;
	if (!(MUST(personality(0xffffffff)) & ADDR_NO_RANDOMIZE)) {
		MUST(personality(ADDR_NO_RANDOMIZE));
		MUST(execv("/proc/self/exe", argv));
	}
	wl_begin();
	char *heap = sbrk(size);
	if (heap == (void *)-1)
		wl_skip("sbrk: %s", strerror(errno));
	/* Little of it: not a huge page for each place. */
	char *start = (char *)(((uintptr_t)heap + WL_PAGE - 1) & -(uintptr_t)WL_PAGE);
	madvise(start, (size_t)(heap + size - start) & -(size_t)WL_PAGE, MADV_NOHUGEPAGE);
	for (int at = 0; at < size; at += step)
		wl_fill(heap + at, 64, (uint64_t)at);
	wl_ready_wait();
	for (int at = 0; at < size; at += step)
		wl_same(heap + at, 64, (uint64_t)at, "on the heap");
	CHECK(sbrk(0) == heap + size, "the heap ends at %p", sbrk(0));
	CHECK(sbrk(WL_PAGE) == heap + size, "the heap does not grow: %s", strerror(errno));
	wl_zero(heap + size, WL_PAGE, "more of the heap");
	wl_pass();
}
