// SPDX-License-Identifier: Apache-2.0
/* SVE of aarch64, and SME where the kernel has it (none of Debian's): vectors, predicates and FFR of a process that spins,
 * another one's in streaming mode; the array ZA and TPIDR2 of both, one with vector lengths of its own; ZA also across a
 * system call. */
/* wl: */
#include "wl.h"
#ifdef __aarch64__
#include <sys/auxv.h>

#ifndef PR_SVE_SET_VL
#define PR_SVE_SET_VL 50
#define PR_SVE_GET_VL 51
#endif
#ifndef PR_SME_SET_VL
#define PR_SME_SET_VL 63
#define PR_SME_GET_VL 64
#endif
#define VL_MASK 0xffff
#define HAS_SVE (1ul << 22)
#define HAS_SME (1ul << 23) /* of AT_HWCAP2 */

enum { most = 256 }; /* bytes of a vector */
struct side {
	uint8_t z[32 * most], p[16 * most / 8], ffr[most / 8], za[most * most];
};
struct hold {
	volatile unsigned long spinning, stop;
	struct side before, after;
};
void sve_spin(struct hold *, struct side *, struct side *, int ffr);
void za_load(const void *, long vector), za_store(void *, long vector);

/* x0: spinning, stop; x1: from; x2: to; w3: FFR is to be had (not in streaming mode) */
__asm__(".arch armv8.5-a+sve+sme\n"
	".text\n.type sve_spin, %function\n"
	"sve_spin: stp d8, d9, [sp, #-64]!; stp d10, d11, [sp, #16]; stp d12, d13, [sp, #32]; stp d14, d15, [sp, #48]\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"ldr z\\n, [x1, #\\n, mul vl]\n.endr\n"
	"add x5, x1, #8192; cbz w3, 3f; add x6, x5, #512; ldr p0, [x6]; wrffr p0.b\n"
	"3:.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nldr p\\n, [x5, #\\n, mul vl]\n.endr\n"
	"mov x4, #1; str x4, [x0]\n"
	"1: ldr x4, [x0, #8]; cbz x4, 1b\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"str z\\n, [x2, #\\n, mul vl]\n.endr\n"
	"add x5, x2, #8192\n.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nstr p\\n, [x5, #\\n, mul vl]\n.endr\n"
	"cbz w3, 4f; add x6, x5, #512; rdffr p0.b; str p0, [x6]\n"
	"4: ldp d10, d11, [sp, #16]; ldp d12, d13, [sp, #32]; ldp d14, d15, [sp, #48]; ldp d8, d9, [sp], #64; ret\n"
	".type za_load, %function\n"
	"za_load: mov w12, #0\n1: ldr za[w12, 0], [x0]; add x0, x0, x1; add w12, w12, #1; cmp x12, x1; b.lt 1b; ret\n"
	".type za_store, %function\n"
	"za_store: mov w12, #0\n1: str za[w12, 0], [x0]; add x0, x0, x1; add w12, w12, #1; cmp x12, x1; b.lt 1b; ret\n");

static void streaming(bool on)
{
	if (on)
		__asm__ volatile(".arch armv8.5-a+sve+sme\n smstart sm" ::: "memory");
	else
		__asm__ volatile(".arch armv8.5-a+sve+sme\n smstop sm" ::: "memory");
}
static void set_tpidr2(unsigned long value) { __asm__ volatile("msr S3_3_C13_C0_5, %0" ::"r"(value)); }
static unsigned long tpidr2(void)
{
	unsigned long value;
	__asm__ volatile("mrs %0, S3_3_C13_C0_5" : "=r"(value));
	return value;
}

static void fill(struct side *side, unsigned seed)
{
	wl_fill(side, sizeof *side, seed);
	memset(side->ffr, 0, sizeof side->ffr);
	memset(side->ffr, 0xff, 3); /* FFR has ones first, then zeros */
}

static bool sme, sve;
static int sve_length, sme_length;

/* Spins with all of it; `stream`: in streaming mode. */
static void hold(struct hold *hold, bool stream)
{
	const char *who = stream ? "in streaming mode" : "spinning";
	if (sme) {
		set_tpidr2(0x1234567890 + stream);
		__asm__ volatile(".arch armv8.5-a+sve+sme\n smstart za" ::: "memory");
		za_load(hold->before.za, sme_length);
	}
	if (stream)
		streaming(true);
	sve_spin(hold, &hold->before, &hold->after, !stream);
	if (stream)
		streaming(false);
	size_t length = stream ? sme_length : sve_length;
	for (size_t i = 0; i < 32 * length; i++)
		CHECK(hold->after.z[i] == hold->before.z[i], "%s: z%zu, byte %zu is %02x, was %02x", who, i / length, i % length, hold->after.z[i],
		      hold->before.z[i]);
	for (size_t i = 0; i < 16 * length / 8; i++)
		CHECK(hold->after.p[i] == hold->before.p[i], "%s: p%zu is another", who, i / (length / 8));
	CHECK(stream || !memcmp(hold->after.ffr, hold->before.ffr, length / 8), "%s: FFR is another", who);
	CHECK((prctl(PR_SVE_GET_VL) & VL_MASK) == sve_length, "%s: SVE's vectors have %d bytes, had %d", who,
	      prctl(PR_SVE_GET_VL) & VL_MASK, sve_length);
	if (!sme)
		return;
	CHECK((prctl(PR_SME_GET_VL) & VL_MASK) == sme_length, "%s: SME's vectors have another length", who);
	CHECK(tpidr2() == 0x1234567890ul + stream, "%s: TPIDR2 is %lx", who, tpidr2());
	za_store(hold->after.za, sme_length);
	CHECK(!memcmp(hold->after.za, hold->before.za, (size_t)sme_length * (size_t)sme_length), "%s: ZA is another", who);
}

static pid_t start(struct hold *at, bool stream)
{
	pid_t child = MUST(fork());
	if (!child) {
		if (!stream) {
			sve_length = MUST(prctl(PR_SVE_SET_VL, 32)) & VL_MASK;
			if (sme)
				sme_length = MUST(prctl(PR_SME_SET_VL, 32)) & VL_MASK;
		}
		hold(at, stream);
		_exit(0);
	}
	while (!at->spinning)
		usleep(1000);
	return child;
}

int main(void)
{
	wl_begin();
	sve = getauxval(AT_HWCAP) & HAS_SVE;
	sme = getauxval(AT_HWCAP2) & HAS_SME;
	if (!sve)
		wl_skip("this processor has no SVE");
	sve_length = MUST(prctl(PR_SVE_GET_VL)) & VL_MASK;
	sme_length = sme ? MUST(prctl(PR_SME_GET_VL)) & VL_MASK : 0;
	struct hold *holds = MUST(mmap(NULL, 3 * sizeof *holds, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	for (unsigned i = 0; i < 3; i++)
		fill(&holds[i].before, 10 + i);
	pid_t plain = start(&holds[0], false), stream = sme ? start(&holds[1], true) : 0;
	wl_say("vectors of %d and %d bytes", sve_length, sme_length);
	if (sme) {
		/* No function of the C library may come in between that uses vectors, so the call is made here. */
		set_tpidr2(77);
		__asm__ volatile(".arch armv8.5-a+sve+sme\n smstart za" ::: "memory");
		za_load(holds[2].before.za, sme_length);
	}
	wl_ready_wait();
	if (sme) {
		CHECK(tpidr2() == 77, "in a system call: TPIDR2 is %lx", tpidr2());
		za_store(holds[2].after.za, sme_length);
		CHECK(!memcmp(holds[2].after.za, holds[2].before.za, (size_t)sme_length * (size_t)sme_length), "in a system call: ZA is another");
		__asm__ volatile(".arch armv8.5-a+sve+sme\n smstop za" ::: "memory");
	}
	holds[0].stop = holds[1].stop = 1;
	wl_reap(plain);
	if (stream)
		wl_reap(stream);
	wl_say("exercised: SVE, FFR, SVE vector length%s", sme ? ", streaming SVE, SME ZA, SME vector length, TPIDR2" : "");
	wl_pass();
}
#else
int main(void) { wl_skip("SVE is aarch64's"); }
#endif
