// SPDX-License-Identifier: Apache-2.0
/* Restartable sequences: threads that add to per-CPU counters in long critical sections.  One that is caught inside must
 * start it over, whether it is restored or goes on; else two additions become one. */
/* wl: */
#include "wl.h"
#ifdef __x86_64__

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

static int add_one(struct rseq_area *area, uint32_t cpu)
{
	uint64_t *counter = &counters[cpu].value;
	__asm__ goto(".pushsection __rseq_cs, \"aw\"; .balign 32; 3: .long 0, 0; .quad 1f, 2f - 1f, 4f; .popsection;"
		     "lea 3b(%%rip), %%rax; mov %%rax, 8(%[area]);"
		     "1: cmp %[cpu], 4(%[area]); jne 4f;"
		     "mov (%[counter]), %%rcx;"
		     "mov $3000, %%eax; 5: dec %%eax; jnz 5b;" /* long: nearly always inside */
		     "inc %%rcx; mov %%rcx, (%[counter]);"
		     "2:"
		     ".pushsection __rseq_failure, \"ax\"; .byte 0x0f, 0xb9, 0x3d; .long 0x53053053; 4: jmp %l[again]; .popsection"
		     :
		     : [area] "r"(area), [cpu] "r"(cpu), [counter] "r"(counter)
		     : "rax", "rcx", "memory", "cc"
		     : again);
	return 1;
again:
	return 0;
}

static void *body(void *argument)
{
	uint64_t mine = 0, *result = &done[(intptr_t)argument];
	struct rseq_area *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
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
	while (!*(volatile uint64_t *)&done[0] || !*(volatile uint64_t *)&done[threads - 1])
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
#else
int main(void) { wl_skip("this critical section is written for x86_64"); }
#endif
