// SPDX-License-Identifier: Apache-2.0
/* The thread register of 32-bit ARM that a program may write itself: of the first thread, of another, of one with 0 in
 * it; of a child that has its parent's, and of one, and of its thread, whose descriptor table is full. */
/* wl: */
#include "wl.h"
#ifdef __arm__
static void set(unsigned value) { __asm__ volatile("mcr p15,0,%0,c13,c0,2" : : "r"(value)); }

static unsigned get(void)
{
	unsigned value;
	__asm__ volatile("mrc p15,0,%0,c13,c0,2" : "=r"(value));
	return value;
}

static const unsigned first = 0xbeef0000, second = 0xffffffff, full = 0x1234567, none;
static pthread_barrier_t set_up, over;

static void *thread(void *argument)
{
	const unsigned *mine = argument;
	set(*mine);
	pthread_barrier_wait(&set_up);
	pthread_barrier_wait(&over);
	EXPECT(get() == *mine, "a thread has %#x, and had %#x", get(), *mine);
	return NULL;
}

static void child(void *unused)
{
	(void)unused;
	wl_child_ready_wait();
	CHECK(get() == first, "the child has %#x", get());
}

/* Torpor's own descriptors have no room there: its system calls are made one by one. */
static void with_full_table(void *unused)
{
	pthread_t another;
	(void)unused;
	set(full);
	MUST0(pthread_barrier_init(&set_up, NULL, 2));
	MUST0(pthread_barrier_init(&over, NULL, 2));
	MUST0(pthread_create(&another, NULL, thread, (void *)&second));
	pthread_barrier_wait(&set_up);
	struct rlimit limit = {.rlim_cur = 64, .rlim_max = 64};
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	while (dup(0) >= 0)
		;
	wl_child_ready_wait();
	EXPECT(get() == full, "the child with a full table has %#x", get());
	pthread_barrier_wait(&over);
	MUST0(pthread_join(another, NULL));
	_exit(wl_wrong);
}

int main(void)
{
	static const unsigned *const values[] = {&second, &none};
	pthread_t threads[2];
	wl_begin();
	set(first);
	pid_t own = wl_child(child, NULL), other = wl_child(with_full_table, NULL);
	MUST0(pthread_barrier_init(&set_up, NULL, 3));
	MUST0(pthread_barrier_init(&over, NULL, 3));
	for (int i = 0; i < 2; i++)
		MUST0(pthread_create(&threads[i], NULL, thread, (void *)values[i]));
	pthread_barrier_wait(&set_up);
	wl_ready_wait();
	EXPECT(get() == first, "the first thread has %#x", get());
	pthread_barrier_wait(&over);
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_end(own);
	wl_end(other);
	wl_pass();
}
#else
int main(void) { wl_skip("only 32-bit ARM has it"); }
#endif
