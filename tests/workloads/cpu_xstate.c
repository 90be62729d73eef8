// SPDX-License-Identifier: Apache-2.0
/* All of XSTATE that this CPU has (x87, SSE, AVX, AVX-512, protection keys), held across the dump by a thread that
 * waits in a system call and by one that spins: XSAVE before, XSAVE after, compared component by component.  Exercised
 * are those that held something (under QEMU all are in use; of MPX nothing is). */
/* wl: */
#include "wl.h"
#ifdef __x86_64__
#include <cpuid.h>

static volatile struct {
	int stop, spinning;
} flags;
static uint64_t features, held[2] = {~0ul, ~0ul}; /* components that are not all zeros, by thread */
static const char *const names[] = {"x87", "SSE", "AVX", "MPX bounds", "MPX config", "AVX-512 masks", "AVX-512 upper halves",
				    "AVX-512 registers 16 to 31", "PT", "protection keys"};
enum { keys = 9 };

#define LOAD(n) "vmovups (%[values]), %%zmm" #n "; add $64, %[values];"
#define LOAD_YMM(n) "vmovups (%[values]), %%ymm" #n "; add $64, %[values];"
#define LOAD_XMM(n) "movups (%[values]), %%xmm" #n "; add $64, %[values];"
#define LOW(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11) x(12) x(13) x(14) x(15)
#define HIGH(x) x(16) x(17) x(18) x(19) x(20) x(21) x(22) x(23) x(24) x(25) x(26) x(27) x(28) x(29) x(30) x(31)
/* XSAVE, then wait for SIGTERM by system calls that touch no such register, or for `stop`, then XSAVE again. */
#define XSAVE(area) "mov $-1, %%eax; mov $-1, %%edx; xsave64 (%[" area "]);"
#define HOLD                                                                                                           \
	XSAVE("before")                                                                                                \
	"cmpl $0, %[spin]; jne 2f;"                                                                                    \
	"1: mov $128, %%eax; mov %[set], %%rdi; xor %%esi, %%esi; xor %%edx, %%edx; mov $8, %%r10d; syscall;"          \
	"cmp $15, %%eax; jne 1b; jmp 3f;"                                                                              \
	"2: movl $1, 4(%[stop]);"                                                                                      \
	"4: pause; cmpl $0, (%[stop]); je 4b;"                                                                         \
	"3:" XSAVE("after")
#define HOLD_OPERANDS [before] "r"(before), [after] "r"(after), [spin] "m"(spin), [set] "m"(set), [stop] "r"(&flags)
#define CLOBBERED "rax", "rdi", "rsi", "rdx", "r10", "rcx", "r11", "memory", "cc"

static void hold(int spin, uint64_t seed)
{
	unsigned a, size, c, d;
	__cpuid_count(13, 0, a, size, c, d);
	uint8_t *before = aligned_alloc(64, (size + 63) & ~63u), *after = aligned_alloc(64, (size + 63) & ~63u);
	uint64_t content[32 * 8];
	const uint64_t *values = content;
	sigset_t wanted = wl_set(SIGTERM), *set = &wanted;
	uint32_t mxcsr = 0x3f80 | (spin ? 0x20 : 0x01); /* another rounding mode, a sticky flag */
	uint16_t control = 0x0f7f & ~(spin ? 0x0400 : 0x0800);
	double numbers[6] = {1.5, -2.25, 3e300, 4e-300, 5.125, (double)seed};
	memset(before, 0, size);
	memset(after, 0, size);
	wl_fill(content, sizeof content, seed);
	__asm__ volatile("fninit; fldcw %0" ::"m"(control));
	for (int i = 0; i < 6; i++)
		__asm__ volatile("fldl %0" ::"m"(numbers[i]));
	__asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
	if (features >> keys & 1) /* other rights than every program has at first; key 0 is that of all memory here */
		__asm__ volatile(".byte 0x0f, 0x01, 0xef" ::"a"(spin ? 0x12345670 : 0x2468ace0), "c"(0), "d"(0)); /* wrpkru */
	if (features & 0x40)
		__asm__ volatile("kmovw %k[one], %%k1; kmovw %k[two], %%k2; kmovw %k[one], %%k7;" LOW(LOAD) HIGH(LOAD) HOLD
				 : [values] "+r"(values)
				 : HOLD_OPERANDS, [one] "b"((uint32_t)seed | 0x1234), [two] "b"((uint32_t)seed | 0x1234)
				 : CLOBBERED);
	else if (features & 4)
		__asm__ volatile(LOW(LOAD_YMM) HOLD : [values] "+r"(values) : HOLD_OPERANDS : CLOBBERED);
	else
		__asm__ volatile(LOW(LOAD_XMM) HOLD : [values] "+r"(values) : HOLD_OPERANDS : CLOBBERED);
	__asm__ volatile("fninit");
	uint64_t had, has;
	memcpy(&had, before + 512, 8);
	memcpy(&has, after + 512, 8);
	/* the legacy area: control words, x87 and SSE registers (not the last x87 instruction's address) */
	CHECK(!memcmp(before, after, 6), "x87 control, status and tag words changed");
	CHECK(!memcmp(before + 24, after + 24, 4), "MXCSR is 0x%x, was 0x%x", *(uint32_t *)(after + 24), *(uint32_t *)(before + 24));
	CHECK(!memcmp(before + 32, after + 32, 128), "x87 registers changed");
	CHECK(!memcmp(before + 160, after + 160, 256), "SSE registers changed");
	for (unsigned i = 2; i < 63; i++) {
		unsigned length, offset;
		if (!(features >> i & 1))
			continue;
		__cpuid_count(13, i, length, offset, c, d);
		CHECK((had >> i & 1) <= (has >> i & 1), "component %u (%s) has become unused", i, i < 10 ? names[i] : "?");
		bool something = false;
		for (unsigned j = 0; j < length; j++)
			something |= before[offset + j];
		if (!(had >> i & 1) || !something)
			held[spin] &= ~(1ul << i);
		if (had >> i & 1)
			CHECK(!memcmp(before + offset, after + offset, length), "component %u (%s) changed (%s)", i, i < 10 ? names[i] : "?",
			      spin ? "spinning" : "in a system call");
	}
	if (features & 0x40)
		CHECK((had & 0xe6) == 0xe6, "the test did not use what it meant to: 0x%" PRIx64, had);
}

static void *spinner(void *unused)
{
	(void)unused;
	wl_spins();
	hold(1, 77);
	return NULL;
}

int main(void)
{
	pthread_t thread;
	unsigned a, b, c, d;
	wl_begin();
	__cpuid(1, a, b, c, d);
	if (!(c >> 27 & 1))
		wl_skip("no XSAVE");
	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	features = (uint64_t)d << 32 | a;
	MUST0(pthread_create(&thread, NULL, spinner, NULL));
	while (!flags.spinning)
		usleep(1000);
	wl_ready();
	hold(0, 33);
	flags.stop = 1;
	MUST0(pthread_join(thread, NULL));
	wl_say("exercised: x87, MXCSR");
	for (unsigned i = 2; i < sizeof names / sizeof *names; i++)
		if ((features & held[0] & held[1]) >> i & 1)
			wl_say("exercised: %s", names[i]);
	wl_pass();
}
#else
int main(void) { wl_skip("XSTATE is x86_64's"); }
#endif
