// SPDX-License-Identifier: Apache-2.0
/* A thread of a 64-bit program that computes in 32-bit code, as Wine has them. */
/* wl: refused=runs_32-bit_code */
#include "wl.h"
#ifdef __x86_64__

static volatile unsigned *low;

static void *body(void *unused)
{
	(void)unused;
	/* 32-bit: mov ebx, ADDRESS; again: inc dword [ebx]; pause; cmp dword [ebx+4], 0; je again; then, by a far jump
	 * back into 64-bit code: ret.  (In 64-bit code 41 is a prefix: ecx would not be counted.) */
	unsigned char code[] = {0xbb, 0, 0, 0, 0, 0xff, 0x03, 0xf3, 0x90, 0x83, 0x7b, 0x04, 0, 0x74, 0xf6,
				0xea, 0, 0, 0, 0, 0x33, 0, 0xc3};
	unsigned char *at = (unsigned char *)low + 1024;
	unsigned address = (unsigned)(uintptr_t)low, back = (unsigned)(uintptr_t)at + 22;
	memcpy(code + 1, &address, 4);
	memcpy(code + 16, &back, 4);
	memcpy(at, code, sizeof code);
	struct __attribute__((packed)) {
		unsigned offset;
		unsigned short segment;
	} far = {(unsigned)(uintptr_t)at, 0x23};
	/* The stack pointer does not fit: it is kept in a register that 32-bit code does not have. */
	__asm__ volatile("mov %%rsp, %%r12; lea 2f(%%rip), %%r13; mov %1, %%rsp; mov $0x2b, %%ecx; mov %%ecx, %%ds\n\t"
			 "mov %%ecx, %%es; push %%r13; ljmp *(%0)\n\t2: mov %%r12, %%rsp"
			 :: "r"(&far), "r"((uintptr_t)low + 4000) : "rbx", "rcx", "r12", "r13", "memory", "cc");
	return NULL;
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	low = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!low[0])
		usleep(1000);
	wl_ready_wait();
	unsigned before = low[0];
	while (low[0] == before)
		usleep(1000);
	low[1] = 1;
	MUST0(pthread_join(thread, NULL));
	wl_pass();
}
#else
int main(void)
{
	wl_begin();
	wl_skip("only x86_64 can run other code in the same process");
}
#endif
