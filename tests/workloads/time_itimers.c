// SPDX-License-Identifier: Apache-2.0
/* The three interval timers, far ahead and periodic; the profiling one also while the process spins. */
/* wl: */
#include "wl.h"

static volatile sig_atomic_t ticks;

static void tick(int number)
{
	(void)number;
	ticks++;
}

static void near(int which, long seconds, long micro, long interval)
{
	struct itimerval now;
	MUST(getitimer((__itimer_which_t)which, &now));
	CHECK(now.it_interval.tv_sec == interval && now.it_interval.tv_usec == 250000, "timer %d: interval is %ld.%06ld", which,
	      (long)now.it_interval.tv_sec, (long)now.it_interval.tv_usec);
	/* it may have run on for as long as the test took, not more, and not backwards */
	int64_t left = now.it_value.tv_sec * 1000000L + now.it_value.tv_usec, was = seconds * 1000000L + micro;
	CHECK(left <= was + 10000 && left > was - 300000000L, "timer %d: %" PRId64 " us left of %" PRId64, which, left, was);
}

/* Its signal is blocked and waits from here on, so that what /proc shows stays the same. */
static void quick(void *unused)
{
	sigset_t set = wl_set(SIGALRM), waiting;
	(void)unused;
	MUST(sigaction(SIGALRM, &(struct sigaction){.sa_handler = tick}, NULL));
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(setitimer(ITIMER_REAL, &(struct itimerval){{0, 20000}, {0, 20000}}, NULL));
	do {
		usleep(1000);
		MUST(sigpending(&waiting));
	} while (!sigismember(&waiting, SIGALRM));
	wl_child_ready_wait();
	CHECK(ticks == 0, "a blocked signal was caught");
	MUST(sigprocmask(SIG_UNBLOCK, &set, NULL));
	for (int i = 0; i < 500 && ticks < 4; i++)
		usleep(10000);
	CHECK(ticks >= 4, "a periodic timer no longer fires: %d ticks", (int)ticks);
	_exit(0);
}

int main(void)
{
	wl_begin();
	MUST(setitimer(ITIMER_REAL, &(struct itimerval){{7, 250000}, {5000, 123456}}, NULL));
	MUST(setitimer(ITIMER_VIRTUAL, &(struct itimerval){{8, 250000}, {6000, 234567}}, NULL));
	MUST(setitimer(ITIMER_PROF, &(struct itimerval){{9, 250000}, {7000, 345678}}, NULL));
	pid_t child = wl_child(quick, NULL); /* a child has no timers, until it sets some */
	wl_ready_wait();
	near(ITIMER_REAL, 5000, 123456, 7);
	near(ITIMER_VIRTUAL, 6000, 234567, 8);
	near(ITIMER_PROF, 7000, 345678, 9);
	wl_end(child);
	wl_pass();
}
