// SPDX-License-Identifier: Apache-2.0
/* Restartable sequences: threads that add to per-CPU counters in long critical sections.  One that is caught inside must
 * start it over, whether it is restored or goes on; else two additions become one. */
/* wl: */
#include "wl.h"

struct rseq_area {
	uint32_t cpu_id_start, cpu_id;
	uint64_t rseq_cs;
	uint32_t flags;
} __attribute__((aligned(32)));

/* glibc registers an area for each thread; these symbols tell where. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned __rseq_size __attribute__((weak));

enum { threads = 4, cpus = 1024 };
static struct {
	uint64_t value, unused[7];
} counters[cpus];
static uint64_t done[threads];
static volatile int stop;

#ifdef __powerpc64__
#define ADDRESS "b" /* r0 would mean 0 */
#elif defined __s390x__
#define ADDRESS "a"
#else
#define ADDRESS "r"
#endif
extern const char section[] __attribute__((visibility("hidden"))); /* struct rseq_cs of the section below */

/* START stores the address of .section; LONG_WAY reads the counter, takes its time, and writes it, one higher. */
#if defined __x86_64__
#define WORDS ".quad 1f, 2f - 1f, 4f"
#define SIGNATURE ".byte 0x0f, 0xb9, 0x3d; .long 0x53053053"
#define JUMP "jmp"
#define START "mov %[cs], 8(%[area]);"
#define LONG_WAY                                                                                                       \
	"cmp %[cpu], 4(%[area]); jne %l[again]; mov (%[counter]), %%rcx; mov $3000, %%eax; 5: dec %%eax; jnz 5b;"      \
	"inc %%rcx; mov %%rcx, (%[counter]);"
#define USED "rax", "rcx"
#elif defined __aarch64__
#define WORDS ".quad 1f, 2f - 1f, 4f"
#define SIGNATURE ".long 0xd428bc00"
#define JUMP "b"
#define START "str %[cs], [%[area], #8];"
#define LONG_WAY                                                                                                       \
	"ldr w1, [%[area], #4]; cmp w1, %w[cpu]; b.ne %l[again]; ldr x2, [%[counter]]; mov w1, #3000;"                 \
	"5: sub w1, w1, #1; cbnz w1, 5b; add x2, x2, #1; str x2, [%[counter]];"
#define USED "x1", "x2"
#elif defined __arm__
#define WORDS ".long 1f, 0, 2f - 1f, 0, 4f, 0"
#define SIGNATURE ".balign 4; .long 0xe7f5def3"
#define JUMP "b"
#define START "str %[cs], [%[area], #8];"
#define LONG_WAY                                                                                                       \
	"ldr r1, [%[area], #4]; cmp r1, %[cpu]; bne %l[again]; ldr r2, [%[counter]]; movw r1, #3000;"                  \
	"5: subs r1, r1, #1; bne 5b; add r2, r2, #1; str r2, [%[counter]];"
#define USED "r1", "r2"
#elif defined __powerpc64__
#define WORDS ".quad 1f, 2f - 1f, 4f"
#define SIGNATURE ".long 0x0fe5000b"
#define JUMP "b"
#define START "std %[cs], 8(%[area]);"
#define LONG_WAY                                                                                                       \
	"lwz 9, 4(%[area]); cmpw 9, %[cpu]; bne %l[again]; ld 10, 0(%[counter]); li 9, 3000; mtctr 9; 5: bdnz 5b;"      \
	"addi 10, 10, 1; std 10, 0(%[counter]);"
#define USED "r9", "r10", "ctr"
#elif defined __s390x__
#define WORDS ".quad 1f, 2f - 1f, 4f"
#define SIGNATURE ".long 0xb2ff0fff"
#define JUMP "jg"
#define START "stg %[cs], 8(%[area]);"
#define LONG_WAY                                                                                                       \
	"c %[cpu], 4(%[area]); jne %l[again]; lg %%r1, 0(%[counter]); lghi %%r0, 3000; 5: brct %%r0, 5b;"               \
	"aghi %%r1, 1; stg %%r1, 0(%[counter]);"
#define USED "r0", "r1"
#endif

__attribute__((noipa)) static int add_one(struct rseq_area *area, uint32_t cpu)
{
	uint64_t *counter = &counters[cpu].value;
	__asm__ goto(".pushsection __rseq_cs, \"aw\"; .balign 32; section: .long 0, 0; " WORDS "; .popsection;" START "1:" LONG_WAY
		     "2: .pushsection __rseq_failure, \"ax\"; " SIGNATURE "; 4: " JUMP " %l[again]; .popsection"
		     :
		     : [area] ADDRESS(area), [cpu] "r"(cpu), [counter] ADDRESS(counter), [cs] "r"(section)
		     : USED, "memory", "cc"
		     : again);
	return 1;
again:
	return 0;
}

static char *thread_pointer(void)
{
#ifdef __powerpc64__
	char *found;
	__asm__("mr %0, 13" : "=r"(found));
	return found;
#else
	return __builtin_thread_pointer();
#endif
}

static void *body(void *argument)
{
	uint64_t mine = 0, *result = &done[(intptr_t)argument];
	struct rseq_area *area = (void *)(thread_pointer() + __rseq_offset);
	wl_spins();
	while (!stop) {
		uint32_t cpu = __atomic_load_n(&area->cpu_id_start, __ATOMIC_RELAXED);
		CHECK(cpu < cpus && (int32_t)area->cpu_id >= 0, "rseq is not registered: CPU %d", (int)area->cpu_id);
		mine += (uint64_t)add_one(area, cpu);
		*(volatile uint64_t *)result = mine;
	}
	return NULL;
}

int main(void)
{
	pthread_t ids[threads];
	wl_begin();
	if (!&__rseq_size || !__rseq_size)
		wl_skip("this C library registers no rseq");
	for (intptr_t i = 0; i < threads; i++)
		MUST0(pthread_create(&ids[i], NULL, body, (void *)i));
	for (int i = 0; i < threads; i++)
		while (!*(volatile uint64_t *)&done[i])
			usleep(1000);
	wl_ready_wait();
	uint64_t before = *(volatile uint64_t *)&done[0], sum = 0, counted = 0;
	for (int i = 0; i < 5000 && *(volatile uint64_t *)&done[0] == before; i++)
		usleep(1000);
	stop = 1;
	for (int i = 0; i < threads; i++) {
		MUST0(pthread_join(ids[i], NULL));
		sum += done[i];
	}
	for (int i = 0; i < cpus; i++)
		counted += counters[i].value;
	CHECK(sum == counted, "%" PRIu64 " additions were made, the per-CPU counters hold %" PRIu64, sum, counted);
	CHECK(done[0] > before, "a thread does not go on");
	wl_say("exercised: rseq");
	wl_pass();
}
