// SPDX-License-Identifier: Apache-2.0
/* The vDSO: clock_gettime, gettimeofday, time and getcpu through it, agreeing with the system calls, in every thread. */
/* wl: */
#include "wl.h"

#include <sys/auxv.h>
#include <sys/sysinfo.h>

static volatile bool done, spinning;

static int64_t ns(const struct timespec *t) { return t->tv_sec * 1000000000LL + t->tv_nsec; }

static void clocks(const char *when)
{
	static const int ids[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_MONOTONIC_RAW};
	for (unsigned i = 0; i < sizeof ids / sizeof ids[0]; i++) {
		struct timespec before, through, after;
		MUST((int)syscall(SYS_clock_gettime, ids[i], &before));
		MUST(clock_gettime(ids[i], &through));
		MUST((int)syscall(SYS_clock_gettime, ids[i], &after));
		CHECK(ns(&before) <= ns(&through) && ns(&through) <= ns(&after), "%s: clock %d: vDSO says %ld ns, the kernel %ld to %ld", when,
		      ids[i], (long)ns(&through), (long)ns(&before), (long)ns(&after));
	}
	struct timeval now;
	MUST(gettimeofday(&now, NULL));
	time_t seconds = time(NULL);
#ifdef SYS_time
	time_t again = (time_t)syscall(SYS_time, NULL);
#else
	struct timespec coarse;
	MUST((int)syscall(SYS_clock_gettime, CLOCK_REALTIME_COARSE, &coarse));
	time_t again = coarse.tv_sec;
#endif
	CHECK(again - seconds <= 1 && again - seconds >= 0, "%s: time() is %ld off", when, (long)(again - seconds));
	int cpu = MUST(sched_getcpu());
	CHECK(cpu < get_nprocs_conf(), "%s: CPU %d", when, cpu);
}

static void *spinner(void *unused)
{
	struct timespec before, now;
	(void)unused;
	wl_spins();
	MUST(clock_gettime(CLOCK_MONOTONIC, &before));
	spinning = true;
	while (!done) { /* most of the time inside the vDSO */
		MUST(clock_gettime(CLOCK_MONOTONIC, &now));
		CHECK(ns(&now) >= ns(&before), "the monotonic clock went back by %ld ns", (long)(ns(&before) - ns(&now)));
		before = now;
	}
	return NULL;
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	unsigned long base = getauxval(AT_SYSINFO_EHDR);
	clocks("at first");
	MUST0(pthread_create(&thread, NULL, spinner, NULL));
	while (!spinning)
		usleep(1000);
	wl_ready_wait();
	clocks("afterwards");
	CHECK(getauxval(AT_SYSINFO_EHDR) == base && !memcmp((void *)base, "\177ELF", 4), "no vDSO at %lx", base);
	usleep(20000);
	done = true;
	MUST0(pthread_join(thread, NULL));
	wl_pass();
}
