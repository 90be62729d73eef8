// SPDX-License-Identifier: Apache-2.0
/* FS and GS bases: thread-local storage, a GS base of its own in each thread, set by arch_prctl or by WRGSBASE. */
/* wl: */
#include "wl.h"
#ifdef __x86_64__
#include <asm/prctl.h>
#include <sys/auxv.h>

static __thread uint64_t local;
static volatile int stop;
static int up; /* threads, but the first */
static uint64_t areas[4][8];

static uint64_t through_gs(void)
{
	uint64_t value;
	__asm__ volatile("mov %%gs:8, %0" : "=r"(value));
	return value;
}

static void check(int number, unsigned long fs, const char *when)
{
	unsigned long now = 0;
	MUST((int)syscall(SYS_arch_prctl, ARCH_GET_GS, &now));
	CHECK(now == (unsigned long)areas[number], "%s: thread %d: GS base is %lx, was %p", when, number, now, (void *)areas[number]);
	CHECK(through_gs() == wl_word(5, (uint64_t)number), "%s: thread %d reads another word through GS", when, number);
	MUST((int)syscall(SYS_arch_prctl, ARCH_GET_FS, &now));
	CHECK(now == fs && now == (unsigned long)pthread_self(), "%s: thread %d: FS base is %lx, was %lx", when, number, now, fs);
	CHECK(local == wl_word(6, (uint64_t)number), "%s: thread %d: thread-local storage is another", when, number);
}

static void *body(void *argument)
{
	int number = (int)(intptr_t)argument;
	unsigned long fs;
	areas[number][1] = wl_word(5, (uint64_t)number);
	local = wl_word(6, (uint64_t)number);
	if ((getauxval(AT_HWCAP2) & 2) && number % 2) /* FSGSBASE */
		__asm__ volatile("wrgsbase %0" ::"r"(areas[number]));
	else
		MUST((int)syscall(SYS_arch_prctl, ARCH_SET_GS, areas[number]));
	MUST((int)syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
	check(number, fs, "at first");
	if (number)
		__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	else {
		while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) < 3)
			usleep(1000);
		wl_ready_wait();
	}
	if (number == 1) {
		wl_spins();
		while (!stop) /* using it */
			CHECK(through_gs() == wl_word(5, 1), "the spinning thread reads another word through GS");
	}
	while (number && !stop)
		usleep(50000);
	stop = 1;
	check(number, fs, "afterwards");
	return NULL;
}

int main(void)
{
	pthread_t threads[4];
	wl_begin();
	for (intptr_t i = 1; i < 4; i++)
		MUST0(pthread_create(&threads[i], NULL, body, (void *)i));
	body(NULL);
	for (int i = 1; i < 4; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_say("exercised: FS base, GS base");
	wl_pass();
}
#else
int main(void) { wl_skip("FS and GS bases are x86_64's"); }
#endif
