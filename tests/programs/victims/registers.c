// SPDX-License-Identifier: Apache-2.0
/*
 * Holds values in every register that a thread has and looks again and again whether they are still there: the vector
 * registers (of AVX-512 with its masks, if that is asked for, else of AVX2), the x87 stack, MXCSR, the x87 control word,
 * the general registers, the flags, the FS and GS bases. Four threads with different values, so that a mix-up is seen as
 * well.
 *
 * The values are loaded, held over a long loop in which nothing but a counter changes, and stored again, all in one asm
 * statement: whenever the process is stopped, almost certainly they are in the registers.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 4
#define SPINS 20000000L

static int wide; /* AVX-512 */
static atomic_int over, bad;
static atomic_long rounds[THREADS];

#define V512(OP) \
    OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11) OP(12) OP(13) OP(14) OP(15) \
    OP(16) OP(17) OP(18) OP(19) OP(20) OP(21) OP(22) OP(23) OP(24) OP(25) OP(26) OP(27) OP(28) OP(29) OP(30) OP(31)
#define V256(OP) \
    OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11) OP(12) OP(13) OP(14) OP(15)
#define LOAD512(n) "vmovdqu64 " #n "*64(%[in]), %%zmm" #n "\n\t"
#define STORE512(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%[out])\n\t"
#define LOAD256(n) "vmovdqu " #n "*64(%[in]), %%ymm" #n "\n\t"
#define STORE256(n) "vmovdqu %%ymm" #n ", " #n "*64(%[out])\n\t"
#define MASKS(OP) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7)
#define LOADK(n) "kmovw 2048+" #n "*8(%[in]), %%k" #n "\n\t"
#define STOREK(n) "kmovw %%k" #n ", 2048+" #n "*8(%[out])\n\t"
#define X87_LOAD "fldl 2176(%[in])\n\tfldl 2184(%[in])\n\tfldl 2192(%[in])\n\t"
#define X87_STORE "fstpl 2192(%[out])\n\tfstpl 2184(%[out])\n\tfstpl 2176(%[out])\n\t"
/* general registers beside the pointers and the counter, and the carry flag, which dec leaves alone */
#define GENERAL_LOAD \
    "movq 2208(%[in]), %%rbx\n\tmovq 2216(%[in]), %%r12\n\tmovq 2224(%[in]), %%r13\n\tmovq 2232(%[in]), %%r14\n\t" \
    "movq 2240(%[in]), %%r15\n\tmovq 2248(%[in]), %%r8\n\tmovq 2256(%[in]), %%r9\n\tmovq 2264(%[in]), %%r10\n\tstc\n\t"
#define GENERAL_STORE \
    "movq $0, 2272(%[out])\n\tadcq $0, 2272(%[out])\n\t" \
    "movq %%rbx, 2208(%[out])\n\tmovq %%r12, 2216(%[out])\n\tmovq %%r13, 2224(%[out])\n\tmovq %%r14, 2232(%[out])\n\t" \
    "movq %%r15, 2240(%[out])\n\tmovq %%r8, 2248(%[out])\n\tmovq %%r9, 2256(%[out])\n\tmovq %%r10, 2264(%[out])\n\t"
#define HOLD "1: decq %[spins]\n\tjnz 1b\n\t"
#define GENERAL_CLOBBERS "rbx", "r12", "r13", "r14", "r15", "r8", "r9", "r10", "cc", "memory"
#define X87_CLOBBERS "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)"

struct image {
    uint64_t vector[32][8]; /* 0 */
    uint64_t mask[16];      /* 2048 */
    double x87[4];          /* 2176 */
    uint64_t general[8];    /* 2208 */
    uint64_t carry;         /* 2272 */
};

/* mov to memory does not touch the flags; GENERAL_STORE's first mov neither, so adc sees the carry set by stc. */
__attribute__((target("avx512f"))) static void hold_512(const struct image *in, struct image *out)
{
    long spins = SPINS;
    __asm__ volatile(V512(LOAD512) MASKS(LOADK) X87_LOAD GENERAL_LOAD HOLD GENERAL_STORE X87_STORE MASKS(STOREK)
                         V512(STORE512)
                     : [spins] "+a"(spins)
                     : [in] "S"(in), [out] "D"(out)
                     : GENERAL_CLOBBERS, X87_CLOBBERS, "k1", "k2", "k3", "k4", "k5", "k6", "k7", "xmm0", "xmm1", "xmm2",
                       "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
                       "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
                       "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
}

__attribute__((target("avx2"))) static void hold_256(const struct image *in, struct image *out)
{
    long spins = SPINS;
    __asm__ volatile(V256(LOAD256) X87_LOAD GENERAL_LOAD HOLD GENERAL_STORE X87_STORE V256(STORE256)
                     : [spins] "+a"(spins)
                     : [in] "S"(in), [out] "D"(out)
                     : GENERAL_CLOBBERS, X87_CLOBBERS, "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void complain(long thread, const char *what)
{
    dprintf(STDOUT_FILENO, "fail: thread %ld: %s\n", thread, what);
    atomic_store(&bad, 1);
}

static void *work(void *argument)
{
    long thread = (long)argument;
    struct image in, out;
    uint64_t seed = 0x9E3779B97F4A7C15ULL * (uint64_t)(thread + 1);
    uint64_t *words = (uint64_t *)&in;
    memset(&in, 0, sizeof in);
    for (size_t i = 0; i < sizeof in.vector / 8; i++)
        words[i] = seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    for (int i = 1; i < 8; i++)
        in.mask[i] = (uint16_t)(0xA5A5 + i * 257 + thread);
    for (int i = 0; i < 3; i++)
        in.x87[i] = 1.5 * (i + 1) + (double)thread;
    for (int i = 0; i < 8; i++)
        in.general[i] = seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    in.carry = 1;

    uint32_t mxcsr = 0x1f80 | (uint32_t)(thread & 3) << 13, mxcsr_now; /* a rounding mode of its own */
    uint16_t control = (uint16_t)(0x037f | (thread & 3) << 10), control_now;
    __asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(mxcsr), "m"(control));
    unsigned long gs = 0x100000UL * (unsigned long)(thread + 1), gs_now, fs, fs_now;
    syscall(SYS_arch_prctl, ARCH_SET_GS, gs);
    syscall(SYS_arch_prctl, ARCH_GET_FS, &fs);
    while (!atomic_load(&over)) {
        memset(&out, 0, sizeof out);
        if (wide)
            hold_512(&in, &out);
        else
            hold_256(&in, &out);
        for (int i = 0; i < (wide ? 32 : 16); i++)
            if (memcmp(in.vector[i], out.vector[i], wide ? 64 : 32))
                complain(thread, "a vector register changed");
        if (wide && memcmp(in.mask, out.mask, sizeof in.mask))
            complain(thread, "a mask register changed");
        if (memcmp(in.x87, out.x87, sizeof in.x87))
            complain(thread, "the x87 stack changed");
        if (memcmp(in.general, out.general, sizeof in.general))
            complain(thread, "a general register changed");
        if (out.carry != in.carry)
            complain(thread, "the carry flag changed");
        __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr_now), "=m"(control_now));
        if ((mxcsr_now & 0xffc0) != mxcsr)
            complain(thread, "MXCSR changed");
        if (control_now != control)
            complain(thread, "the x87 control word changed");
        syscall(SYS_arch_prctl, ARCH_GET_GS, &gs_now);
        syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_now);
        if (gs_now != gs || fs_now != fs)
            complain(thread, "a segment base changed");
        atomic_fetch_add(&rounds[thread], 1);
    }
    return NULL;
}

int main(int count, char **words)
{
    wide = count > 1 && !strcmp(words[1], "AVX-512");
    if (wide ? !__builtin_cpu_supports("avx512f") : !__builtin_cpu_supports("avx2")) {
        printf("skip: this processor has no %s\n", wide ? "AVX-512" : "AVX2");
        return 77;
    }
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    dprintf(STDOUT_FILENO, "ready: %s\n", wide ? "AVX-512" : "AVX2");
    int number;
    for (long asked = 0; sigwait(&set, &number) == 0 && number == SIGUSR1; asked++) {
        long least = atomic_load(&rounds[0]);
        for (int i = 1; i < THREADS; i++)
            least = atomic_load(&rounds[i]) < least ? atomic_load(&rounds[i]) : least;
        dprintf(STDOUT_FILENO, "rounds %ld: %ld\n", asked, least);
    }
    atomic_store(&over, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    dprintf(STDOUT_FILENO, "%s\n", atomic_load(&bad) ? "fail" : "pass");
    return atomic_load(&bad);
}
