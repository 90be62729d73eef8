// SPDX-License-Identifier: Apache-2.0
/* General registers, flags, floating-point and vector registers, each with a value of its own, held across the dump by a
 * process in a system call and by a child of it that spins in user mode. */
/* wl: */
#include "wl.h"

/* What the assembly reads and writes, through one register; words of the machine, the vectors aligned. */
struct hold {
	unsigned long before[40], after[40];
	unsigned long spinning, stop, result, wanted[16], unused[29];
	uint64_t vectors[128], vectors_after[128];
} __attribute__((aligned(64)));
/* spin: until .stop.  call: rt_sigtimedwait(.wanted) until it says SIGTERM. */
void spin(struct hold *), call(struct hold *);

#define BITS(from, to) (((2ul << ((to) - (from))) - 1) << (from))
#define ASM_OFFSETS(w)                                                                                                 \
	".set AFTER, 40*" w "; .set SPINNING, 80*" w "; .set STOP, 81*" w "; .set RESULT, 82*" w                        \
	"; .set WANTED, 83*" w "; .set VECTORS, 128*" w "; .set VECTORS_AFTER, VECTORS+1024\n"

/* Each architecture: general registers by their numbers in before[]; then flags and the like, of which `bits` count.
 * SPUN, CALLED: general registers that must be the same after spin, after call (those of the call itself are not). */
struct special {
	int index;
	const char *name;
	unsigned long value, bits;
	bool lost_by_calls;
};

#if defined __x86_64__
#define WORD "8"
#define SETS "general registers, flags, SSE"
enum { vector_bytes = 16 * 16 };
#define SPUN (BITS(0, 15) & ~BITS(3, 4)) /* rbx is the base, rsp stays */
#define CALLED (BITS(5, 5) | BITS(8, 9) | BITS(12, 15))
static const struct special specials[] = {{16, "direction flag", 0x400, 0x400}};
__asm__(ASM_OFFSETS(WORD)
	".text\n"
	".macro hold name, calls\n"
	"\\name: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; mov %rdi, %rbx\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"movups VECTORS+16*\\n(%rbx), %xmm\\n\n"
	".endr\n"
	"mov 0(%rbx), %rax; mov 8(%rbx), %rcx; mov 16(%rbx), %rdx; mov 40(%rbx), %rbp; mov 48(%rbx), %rsi; mov 56(%rbx), %rdi\n"
	".irp n,8,9,10,11,12,13,14,15\n"
	"mov 8*\\n(%rbx), %r\\n\n"
	".endr\n"
	"std\n"
	".if \\calls\n"
	"2: mov $128, %eax; lea WANTED(%rbx), %rdi; xor %esi, %esi; xor %edx, %edx; mov $8, %r10d; syscall\n"
	"mov %rax, RESULT(%rbx); sub $15, %rax; jnz 2b\n"
	".else\n"
	"movl $1, SPINNING(%rbx)\n"
	"1: pause; cmpl $0, STOP(%rbx); je 1b\n"
	".endif\n"
	"mov %rax, AFTER(%rbx); mov %rcx, AFTER+8(%rbx); mov %rdx, AFTER+16(%rbx); mov %rbp, AFTER+40(%rbx)\n"
	"mov %rsi, AFTER+48(%rbx); mov %rdi, AFTER+56(%rbx); pushfq; popq AFTER+128(%rbx); cld\n"
	".irp n,8,9,10,11,12,13,14,15\n"
	"mov %r\\n, AFTER+8*\\n(%rbx)\n"
	".endr\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"movups %xmm\\n, VECTORS_AFTER+16*\\n(%rbx)\n"
	".endr\n"
	"pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
	".endm\n"
	"hold spin, 0\n"
	"hold call, 1\n");

#elif defined __aarch64__
#define WORD "8"
#define SETS "general registers, flags, FP/SIMD, FPSR, FPCR"
enum { vector_bytes = 32 * 16 };
#define SPUN (BITS(0, 30) & ~BITS(9, 10)) /* x9 is the base, x10 for the loop */
#define CALLED (SPUN & ~(BITS(0, 3) | BITS(8, 8)))
static const struct special specials[] = {
	{31, "NZCV", 0xa0000000, 0xf0000000}, {32, "FPSR", 0x08000011, 0x0800009f}, {33, "FPCR", 0x01c00000, 0x07f79f00}};
__asm__(ASM_OFFSETS(WORD)
	".text\n"
	".macro hold name, calls\n"
	".type \\name, %function\n"
	"\\name: stp x29, x30, [sp, #-160]!; stp x19, x20, [sp, #16]; stp x21, x22, [sp, #32]; stp x23, x24, [sp, #48]\n"
	"stp x25, x26, [sp, #64]; stp x27, x28, [sp, #80]; stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]\n"
	"stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]; mov x9, x0; add x10, x9, #VECTORS\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"ldr q\\n, [x10, #16*\\n]\n"
	".endr\n"
	"ldr x0, [x9, #8*32]; msr fpsr, x0; ldr x0, [x9, #8*33]; msr fpcr, x0; ldr x0, [x9, #8*31]; msr nzcv, x0\n"
	".irp n,0,1,2,3,4,5,6,7,8,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
	"ldr x\\n, [x9, #8*\\n]\n"
	".endr\n"
	".if \\calls\n"
	"2: add x0, x9, #WANTED; mov x1, #0; mov x2, #0; mov x3, #8; mov x8, #137; svc #0\n"
	"str x0, [x9, #RESULT]; sub x0, x0, #15; cbnz x0, 2b\n"
	".else\n"
	"mov w10, #1; str w10, [x9, #SPINNING]\n"
	"1: ldr w10, [x9, #STOP]; cbz w10, 1b\n"
	".endif\n"
	".irp n,0,1,2,3,4,5,6,7,8,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
	"str x\\n, [x9, #AFTER+8*\\n]\n"
	".endr\n"
	"mrs x0, nzcv; str x0, [x9, #AFTER+8*31]; mrs x0, fpsr; str x0, [x9, #AFTER+8*32]; mrs x0, fpcr; str x0, [x9, #AFTER+8*33]\n"
	"msr fpcr, xzr; add x10, x9, #VECTORS_AFTER\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"str q\\n, [x10, #16*\\n]\n"
	".endr\n"
	"ldp x19, x20, [sp, #16]; ldp x21, x22, [sp, #32]; ldp x23, x24, [sp, #48]; ldp x25, x26, [sp, #64]\n"
	"ldp x27, x28, [sp, #80]; ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]\n"
	"ldp d14, d15, [sp, #144]; ldp x29, x30, [sp], #160; ret\n"
	".endm\n"
	"hold spin, 0\n"
	"hold call, 1\n");

#elif defined __arm__
#define WORD "4"
#define SETS "general registers, flags, Thumb state, VFP, NEON, FPSCR"
enum { vector_bytes = 32 * 8 };
#define SPUN (BITS(0, 14) & ~(BITS(8, 9) | BITS(13, 13))) /* r8 is the base, r9 for the loop */
#define CALLED (SPUN & ~(BITS(0, 3) | BITS(7, 7)))
static const struct special specials[] = {{16, "APSR", 0xa8050000, 0xf80f0000}, {17, "FPSCR", 0x08c00011, 0xfff7009f}};
__asm__(ASM_OFFSETS(WORD)
	".text; .syntax unified; .thumb; .fpu neon\n"
	".macro hold name, calls\n"
	".thumb_func\n"
	".type \\name, %function\n"
	"\\name: push {r4-r11, lr}; vpush {d8-d15}; mov r8, r0; add r9, r8, #VECTORS\n"
	"vldm r9!, {d0-d15}; vldm r9!, {d16-d31}; ldr r0, [r8, #4*17]; vmsr fpscr, r0; ldr r0, [r8, #4*16]; msr apsr_nzcvqg, r0\n"
	".irp n,0,1,2,3,4,5,6,7,10,11,12,14\n"
	"ldr r\\n, [r8, #4*\\n]\n"
	".endr\n"
	".if \\calls\n"
	"2: add r0, r8, #WANTED; mov r1, #0; mov r2, #0; mov r3, #8; mov r7, #177; svc #0\n"
	"str r0, [r8, #RESULT]; sub r0, r0, #15; cbz r0, 3f; b 2b\n"
	"3:\n"
	".else\n"
	"mov r9, #1; str r9, [r8, #SPINNING]; push {r0}\n"
	"1: ldr r0, [r8, #STOP]; cbz r0, 4f; b 5f\n"
	"4: b 1b\n"
	"5: pop {r0}\n"
	".endif\n"
	".irp n,0,1,2,3,4,5,6,7,10,11,12,14\n"
	"str r\\n, [r8, #AFTER+4*\\n]\n"
	".endr\n"
	"mrs r0, apsr; str r0, [r8, #AFTER+4*16]; vmrs r0, fpscr; str r0, [r8, #AFTER+4*17]; mov r0, #0; vmsr fpscr, r0\n"
	"add r9, r8, #VECTORS_AFTER; vstm r9!, {d0-d15}; vstm r9!, {d16-d31}; vpop {d8-d15}; pop {r4-r11, pc}\n"
	".endm\n"
	"hold spin, 0\n"
	"hold call, 1\n");

#elif defined __powerpc64__
#define WORD "8"
#define SETS "general registers, XER, LR, CR, FP, FPSCR, VMX, VSX, VRSAVE, TAR"
enum { vector_bytes = 64 * 16 };
#define SPUN (BITS(0, 30) & ~(BITS(1, 1) | BITS(4, 4) | BITS(13, 13))) /* r31 is the base, r4 for the loop */
#define CALLED BITS(14, 30)
static const struct special specials[] = {
	{32, "XER", 0xa000002a, 0xe000007f, .lost_by_calls = true}, {34, "LR", 0x1234567890, ~0ul}, {35, "CR", 0x00246840, 0x00fffff0},
	{36, "VRSAVE", 0x13579bdf, 0xffffffff}, {38, "TAR", 0x123456789abc, ~0ul}, {39, "FPSCR", 0x3, 0x3}};
__asm__(ASM_OFFSETS(WORD)
	".text; .machine power9\n"
	".macro hold name, calls\n"
	".type \\name, @function\n"
	"\\name: mflr 0; std 0, 16(1); stdu 1, -768(1); mfcr 0; std 0, 264(1); std 2, 272(1)\n"
	".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"std \\n, 8*\\n(1); stfd \\n, 280+8*\\n-112(1)\n"
	".endr\n"
	"addi 4, 1, 448\n"
	".irp n,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"stvx \\n, 0, 4; addi 4, 4, 16\n"
	".endr\n"
	"mr 31, 3; lfd 0, 8*39(31); mtfsf 0xff, 0; addi 4, 31, VECTORS\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"lxvx \\n, 0, 4; addi 4, 4, 16\n"
	".endr\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"lxvx 32+\\n, 0, 4; addi 4, 4, 16\n"
	".endr\n"
	"ld 4, 8*32(31); mtxer 4; ld 4, 8*34(31); mtlr 4; ld 4, 8*35(31); mtcr 4; ld 4, 8*36(31); mtspr 256, 4\n"
	"ld 4, 8*38(31); mtspr 815, 4\n"
	".irp n,0,2,3,5,6,7,8,9,10,11,12,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
	"ld \\n, 8*\\n(31)\n"
	".endr\n"
	".if \\calls\n"
	"2: addi 3, 31, WANTED; li 4, 0; li 5, 0; li 6, 8; li 0, 176; sc\n"
	"std 3, RESULT(31); cmpwi 3, 15; bne 2b\n"
	".else\n"
	"li 4, 1; std 4, SPINNING(31)\n"
	"1: ld 4, STOP(31); cmpdi 7, 4, 0; beq 7, 1b\n"
	".endif\n"
	".irp n,0,2,3,5,6,7,8,9,10,11,12,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
	"std \\n, AFTER+8*\\n(31)\n"
	".endr\n"
	"mfxer 4; std 4, AFTER+8*32(31); mflr 4; std 4, AFTER+8*34(31); mfcr 4; std 4, AFTER+8*35(31); mfspr 4, 256\n"
	"std 4, AFTER+8*36(31); mfspr 4, 815; std 4, AFTER+8*38(31); addi 4, 31, VECTORS_AFTER\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"stxvx \\n, 0, 4; addi 4, 4, 16\n"
	".endr\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"stxvx 32+\\n, 0, 4; addi 4, 4, 16\n"
	".endr\n"
	"mffs 0; stfd 0, AFTER+8*39(31); li 4, 0; std 4, AFTER+8*33(31); lfd 0, AFTER+8*33(31); mtfsf 0xff, 0; addi 4, 1, 448\n"
	".irp n,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"lvx \\n, 0, 4; addi 4, 4, 16\n"
	".endr\n"
	"ld 2, 272(1); ld 0, 264(1); mtcr 0\n"
	".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"ld \\n, 8*\\n(1); lfd \\n, 280+8*\\n-112(1)\n"
	".endr\n"
	"addi 1, 1, 768; ld 0, 16(1); mtlr 0; blr\n"
	".endm\n"
	"hold spin, 0\n"
	"hold call, 1\n");

#elif defined __s390x__
#define WORD "8"
#define SETS "general registers, access registers, condition code, program mask, FP, FPC, vector registers"
enum { vector_bytes = 32 * 16 };
#define SPUN (BITS(0, 14) & ~(BITS(1, 1) | BITS(13, 13))) /* r13 is the base, r1 for the loop */
#define CALLED (BITS(6, 12) | BITS(14, 14))
static const struct special specials[] = {
	{16, "program mask", 0x2a000000, 0x0f000000}, {16, "condition code", 0x2a000000, 0x30000000, .lost_by_calls = true},
	{17, "FPC", 0x88880002, ~0ul}, {18, "access registers 2 and 3", 0x1122334455667788, ~0ul},
	{19, "access registers 14 and 15", 0x99aabbcc12345678, ~0ul}};
__asm__(ASM_OFFSETS(WORD)
	".text; .machine z13\n"
	".macro hold name, calls\n"
	".type \\name, @function\n"
	"\\name: stmg 6, 15, 48(15); lgr 13, 2; aghi 15, -304\n"
	".irp n,8,9,10,11,12,13,14,15\n"
	"std \\n, 160+8*\\n(15)\n"
	".endr\n"
	"lfpc 8*17+4(13); lam 2, 3, 8*18(13); lam 14, 15, 8*19(13); vlm 0, 15, VECTORS(13); vlm 16, 31, VECTORS+256(13); l 1, 8*16+4(13); spm 1\n"
	"lmg 2, 12, 16(13); lg 0, 0(13); lg 14, 112(13)\n"
	".if \\calls\n"
	"2: la 2, WANTED(13); lghi 3, 0; lghi 4, 0; lghi 5, 8; lghi 1, 177; svc 0\n"
	"stg 2, RESULT(13); cghi 2, 15; jne 2b\n"
	".else\n"
	"lghi 1, 1; stg 1, SPINNING(13)\n"
	"1: lg 1, STOP(13); brct 1, 1b\n"
	".endif\n"
	"stg 0, AFTER(13); stmg 2, 12, AFTER+16(13); stg 14, AFTER+112(13); ipm 0; nilh 0, 0xff00; st 0, AFTER+8*16+4(13); stfpc AFTER+8*17+4(13)\n"
	"stam 2, 3, AFTER+8*18(13); stam 14, 15, AFTER+8*19(13); vstm 0, 15, VECTORS_AFTER(13); vstm 16, 31, VECTORS_AFTER+256(13)\n"
	"lghi 0, 0; sfpc 0\n"
	".irp n,8,9,10,11,12,13,14,15\n"
	"ld \\n, 160+8*\\n(15)\n"
	".endr\n"
	"aghi 15, 304; lmg 6, 15, 48(15); br 14\n"
	".endm\n"
	"hold spin, 0\n"
	"hold call, 1\n");

#endif

static __thread uint64_t local; /* reached through the register of thread-local storage */

/* Names everything that is wrong: what CRIU loses (TAR of ppc64le) excuses nothing else. */
static void check(const struct hold *hold, unsigned long kept, const char *who)
{
	for (unsigned i = 0; i < 8 * sizeof kept && i < 40; i++)
		if (kept >> i & 1)
			EXPECT(hold->after[i] == hold->before[i], "%s: register %u is %lx, was %lx", who, i, hold->after[i], hold->before[i]);
	for (size_t i = 0; i < sizeof specials / sizeof *specials; i++)
		EXPECT((specials[i].lost_by_calls && kept == CALLED) || !((hold->after[specials[i].index] ^ specials[i].value) & specials[i].bits),
		       "%s: %s is %lx, was %lx", who, specials[i].name, hold->after[specials[i].index], specials[i].value);
	size_t same = 0;
	while (same < vector_bytes / 8 && hold->vectors_after[same] == hold->vectors[same])
		same++;
	EXPECT(same == vector_bytes / 8, "%s: vector registers, from word %zu on, are %" PRIx64 ", were %" PRIx64, who, same,
	       hold->vectors_after[same], hold->vectors[same]);
}

static void fill(struct hold *hold, unsigned seed)
{
	sigset_t set = wl_set(SIGTERM);
	wl_fill(hold->before, sizeof hold->before, seed);
	for (size_t i = 0; i < sizeof specials / sizeof *specials; i++)
		hold->before[specials[i].index] = specials[i].value;
	wl_fill(hold->vectors, sizeof hold->vectors, seed + 1);
	memcpy(hold->wanted, &set, sizeof hold->wanted);
}

int main(void)
{
	wl_begin();
	struct hold *holds = MUST(mmap(NULL, 2 * sizeof *holds, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	fill(&holds[0], 9);
	fill(&holds[1], 21);
	pid_t child = MUST(fork());
	if (!child) {
		wl_spins();
		local = 77;
		void *thread_pointer = __builtin_thread_pointer();
		spin(&holds[1]);
		CHECK(local == 77 && thread_pointer == __builtin_thread_pointer(), "thread-local storage is elsewhere");
		check(&holds[1], SPUN, "spinning");
		_exit(wl_wrong);
	}
	while (!((volatile struct hold *)holds)[1].spinning)
		usleep(1000);
	wl_ready();
	call(&holds[0]);
	check(&holds[0], CALLED, "in a system call");
	((volatile struct hold *)holds)[1].stop = 1;
	wl_reap(child);
	wl_say("exercised: " SETS ", TLS register");
	wl_pass();
}
