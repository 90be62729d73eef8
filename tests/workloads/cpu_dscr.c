// SPDX-License-Identifier: Apache-2.0
/* The data stream control register of ppc64le, which nobody but a thread itself can set for good. */
/* wl: refused=data_stream_control */
#include "wl.h"
#ifdef __powerpc64__
int main(void)
{
	unsigned long value = 0x11;
	wl_begin();
	__asm__ volatile("mtspr 3, %0" ::"r"(value));
	wl_ready_wait();
	__asm__ volatile("mfspr %0, 3" : "=r"(value));
	CHECK(value == 0x11, "it is %lx", value);
	wl_pass();
}
#else
int main(void) { wl_skip("only ppc64le has it"); }
#endif
