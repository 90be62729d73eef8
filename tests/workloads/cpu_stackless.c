// SPDX-License-Identifier: Apache-2.0
/* A process that uses its stack pointer for something else while it computes: there is no memory where it points. */
/* wl: */
#include "wl.h"

struct shared {
	volatile unsigned long over, rounds;
};

static void count(struct shared *shared)
{
	unsigned long stack = 0;
	wl_spins();
#if defined(__x86_64__)
	__asm__ volatile("mov %%rsp, %0\n xor %%esp, %%esp\n 1: incq 8(%1)\n cmpq $0, (%1)\n je 1b\n mov %0, %%rsp"
			 : "+r"(stack)
			 : "r"(shared)
			 : "memory", "cc");
#elif defined(__aarch64__)
	__asm__ volatile("mov %0, sp\n mov x9, #0\n mov sp, x9\n"
			 "1: ldr x9, [%1, #8]\n add x9, x9, #1\n str x9, [%1, #8]\n ldr x9, [%1]\n cbz x9, 1b\n mov sp, %0"
			 : "+r"(stack)
			 : "r"(shared)
			 : "x9", "memory");
#elif defined(__arm__)
	__asm__ volatile("mov %0, sp\n mov r3, #0\n mov sp, r3\n"
			 "1: ldr r3, [%1, #4]\n add r3, r3, #1\n str r3, [%1, #4]\n ldr r3, [%1]\n cmp r3, #0\n beq 1b\n"
			 "mov sp, %0"
			 : "+r"(stack)
			 : "r"(shared)
			 : "r3", "memory", "cc");
#elif defined(__powerpc64__)
	__asm__ volatile("mr %0, 1\n li 1, 0\n"
			 "1: ld 9, 8(%1)\n addi 9, 9, 1\n std 9, 8(%1)\n ld 9, 0(%1)\n cmpdi 9, 0\n beq 1b\n mr 1, %0"
			 : "+r"(stack)
			 : "b"(shared)
			 : "r9", "memory", "cr0");
#elif defined(__s390x__)
	__asm__ volatile("lgr %0, %%r15\n lghi %%r15, 0\n"
			 "1: lg %%r3, 8(%1)\n aghi %%r3, 1\n stg %%r3, 8(%1)\n ltg %%r3, 0(%1)\n je 1b\n lgr %%r15, %0"
			 : "+r"(stack)
			 : "a"(shared)
			 : "r3", "memory", "cc");
#endif
}

int main(void)
{
	int status;
	struct shared *shared;
	wl_begin();
	shared = MUST(mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pid_t child = MUST(fork());
	if (child == 0) {
		count(shared);
		_exit(0);
	}
	while (!shared->rounds)
		usleep(1000);
	wl_ready_wait();
	for (unsigned long before = shared->rounds; shared->rounds == before;)
		usleep(1000);
	shared->over = 1;
	MUST(waitpid(child, &status, 0));
	CHECK(status == 0, "the child's status is %#x", status);
	wl_pass();
}
