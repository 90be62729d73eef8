// SPDX-License-Identifier: Apache-2.0
/* General registers and flags of a thread that spins in user mode: every one holds a value of its own. */
/* wl: */
#include "wl.h"
#ifdef __x86_64__

/* used by name in the assembly below */
__attribute__((used)) static volatile int stop, spinning;
__attribute__((used)) static volatile uint64_t before[16], after[16], flags;

static void *spinner(void *unused)
{
	(void)unused;
	for (int i = 0; i < 16; i++)
		before[i] = wl_word(9, (uint64_t)i);
	/* carry, parity, zero, sign and overflow come from an addition; direction is set, too */
	__asm__ volatile("push %%rbp; push %%rbx;"
			 "mov before+0(%%rip), %%rax; mov before+8(%%rip), %%rbx; mov before+16(%%rip), %%rcx; mov before+24(%%rip), %%rdx;"
			 "mov before+32(%%rip), %%rsi; mov before+40(%%rip), %%rdi; mov before+48(%%rip), %%rbp; mov before+56(%%rip), %%r8;"
			 "mov before+64(%%rip), %%r9; mov before+72(%%rip), %%r10; mov before+80(%%rip), %%r11; mov before+88(%%rip), %%r12;"
			 "mov before+96(%%rip), %%r13; mov before+104(%%rip), %%r14; mov before+112(%%rip), %%r15; mov %%rsp, before+120(%%rip);"
			 "std;"
			 "movl $1, spinning(%%rip);"
			 "1: cmpl $0, stop(%%rip); je 1b;"
			 "pushfq; pop flags(%%rip); cld;"
			 "mov %%rax, after+0(%%rip); mov %%rbx, after+8(%%rip); mov %%rcx, after+16(%%rip); mov %%rdx, after+24(%%rip);"
			 "mov %%rsi, after+32(%%rip); mov %%rdi, after+40(%%rip); mov %%rbp, after+48(%%rip); mov %%r8, after+56(%%rip);"
			 "mov %%r9, after+64(%%rip); mov %%r10, after+72(%%rip); mov %%r11, after+80(%%rip); mov %%r12, after+88(%%rip);"
			 "mov %%r13, after+96(%%rip); mov %%r14, after+104(%%rip); mov %%r15, after+112(%%rip); mov %%rsp, after+120(%%rip);"
			 "pop %%rbx; pop %%rbp"
			 ::: "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
	for (int i = 0; i < 16; i++)
		CHECK(after[i] == before[i], "register %d is %" PRIx64 ", was %" PRIx64, i, after[i], before[i]);
	CHECK(flags & 0x400, "the direction flag is lost: flags are %" PRIx64, flags);
	return NULL;
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	MUST0(pthread_create(&thread, NULL, spinner, NULL));
	while (!spinning)
		usleep(1000);
	wl_ready_wait();
	stop = 1;
	MUST0(pthread_join(thread, NULL));
	wl_pass();
}
#else
int main(void) { wl_skip("this loop is written for x86_64"); }
#endif
