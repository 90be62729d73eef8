// SPDX-License-Identifier: Apache-2.0
/* POSIX timers: ids with gaps, all clocks, all ways of notice, armed, disarmed, absolute, periodic, with overruns, and
 * for longer than 2^31 seconds, which 32-bit machines have calls of their own for. */
/* wl: */
#include "wl.h"

/* By the system calls: the kernel's ids, which the C library hides. */
struct event { union sigval value; int number, notify; int tid; int unused[11]; };
static int make(clockid_t clock, int notify, int number, void *value, int tid)
{
	struct event event = {.value.sival_ptr = value, .number = number, .notify = notify, .tid = tid};
	int id = -1;
	MUST((int)syscall(SYS_timer_create, clock, &event, &id));
	return id;
}
#if __SIZEOF_LONG__ == 4
#define SETTIME SYS_timer_settime64
#define GETTIME SYS_timer_gettime64
#else
#define SETTIME SYS_timer_settime
#define GETTIME SYS_timer_gettime
#endif
struct spec { int64_t interval, interval_ns, value, value_ns; };
static void set(int id, int flags, int64_t ns, int64_t interval)
{
	struct spec spec = {interval / 1000000000, interval % 1000000000, ns / 1000000000, ns % 1000000000};
	MUST((int)syscall(SETTIME, id, (long)flags, &spec, NULL));
}
static int64_t left(int id, int64_t *interval)
{
	struct spec spec;
	MUST((int)syscall(GETTIME, id, &spec));
	*interval = spec.interval * 1000000000 + spec.interval_ns;
	return spec.value * 1000000000 + spec.value_ns;
}

static const struct {
	clockid_t clock;
	const char *name;
} clocks[] = {{CLOCK_REALTIME, "realtime"}, {CLOCK_MONOTONIC, "monotonic"}, {CLOCK_BOOTTIME, "boottime"}, {CLOCK_TAI, "TAI"}, {CLOCK_PROCESS_CPUTIME_ID, "process CPU"}, {CLOCK_THREAD_CPUTIME_ID, "thread CPU"}};
enum { count = sizeof clocks / sizeof clocks[0] };
static volatile pid_t other;
static volatile int go;

static void *body(void *argument)
{
	sigset_t wanted = wl_set(SIGRTMIN + 4);
	siginfo_t info;
	other = gettid();
	while (!go)
		usleep(50000);
	set(*(int *)argument, 0, 1000000, 0);
	CHECK(sigtimedwait(&wanted, &info, &(struct timespec){10, 0}) == SIGRTMIN + 4, "SIGEV_THREAD_ID: no signal in the thread");
	CHECK(info.si_code == SI_TIMER && info.si_value.sival_ptr == &other, "SIGEV_THREAD_ID: code %d, value %p", info.si_code, info.si_value.sival_ptr);
	return NULL;
}

int main(void)
{
	int ids[count], gap[5], periodic, absolute, disarmed, threaded, overrunning, silent, far, farther;
	const int64_t century = 3155760000 * 1000000000LL;
	int64_t interval, now;
	pthread_t thread;
	siginfo_t info;
	wl_begin();
	sigset_t all = wl_set(SIGALRM);
	for (int i = 0; i < 12; i++)
		sigaddset(&all, SIGRTMIN + i);
	MUST0(pthread_sigmask(SIG_BLOCK, &all, NULL));
	for (int i = 0; i < 5; i++)
		gap[i] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, NULL, 0);
	for (int i = 0; i < count; i++) {
		ids[i] = make(clocks[i].clock, SIGEV_SIGNAL, SIGRTMIN + 6, &ids[i], 0);
		set(ids[i], 0, (1000 + i) * 1000000000LL, (i + 1) * 1000000LL);
		if (i == 2)
			for (int j = 0; j < 5; j++) /* gaps before and after */
				MUST((int)syscall(SYS_timer_delete, gap[j]));
	}
	disarmed = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 7, NULL, 0);
	absolute = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 8, NULL, 0);
	struct timespec time;
	MUST(clock_gettime(CLOCK_MONOTONIC, &time));
	set(absolute, TIMER_ABSTIME, (time.tv_sec + 2000) * 1000000000LL, 0);
	periodic = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 9, (void *)0x1234567890abcdef, 0);
	silent = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, NULL, 0);
	set(silent, 0, 3000000000000LL, 0);
	far = make(CLOCK_REALTIME, SIGEV_NONE, 0, NULL, 0);
	set(far, 0, 2 * century, century);
	farther = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 11, (void *)0x88, 0); /* has fired once, is pending */
	set(farther, 0, 1000000, century);
	/* overruns: the signal is blocked, many periods pass, one signal is pending that counts the others when taken */
	overrunning = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 10, (void *)0x77, 0);
	set(overrunning, 0, 1000000, 1000000);
	usleep(60000);
	static int thread_timer;
	MUST0(pthread_create(&thread, NULL, body, &thread_timer));
	while (!other)
		usleep(1000);
	threaded = thread_timer = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 4, (void *)&other, other);
	set(periodic, 0, 30000000, 30000000);
	for (sigset_t pending; sigpending(&pending), !sigismember(&pending, SIGRTMIN + 9);)
		usleep(1000); /* pending from here on, so that all that is looked at stays the same */
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		now = left(ids[i], &interval);
		CHECK(interval == (i + 1) * 1000000LL, "%s: interval is %" PRId64, clocks[i].name, interval);
		/* it goes on from where it was, or with the clock: at most some minutes may have passed */
		CHECK(now <= (1000 + i) * 1000000000LL && now > (1000 + i - 300) * 1000000000LL, "%s: %" PRId64 " ns left of %d s", clocks[i].name, now, 1000 + i);
	}
	CHECK(left(disarmed, &interval) == 0 && interval == 0, "the disarmed one is armed");
	now = left(absolute, &interval);
	CHECK(now > 1700000000000LL && now <= 2000000000000LL && interval == 0, "absolute: %" PRId64 " ns left", now);
	now = left(silent, &interval);
	CHECK(now > 2700000000000LL && now <= 3000000000000LL, "without notice: %" PRId64 " ns left", now);
	now = left(far, &interval);
	CHECK(now > 2 * century - 300000000000LL && now <= 2 * century && interval == century, "in two centuries: %" PRId64 " ns left, then %" PRId64, now, interval);
	sigset_t wanted = wl_set(SIGRTMIN + 11);
	CHECK(sigtimedwait(&wanted, &info, &(struct timespec){5, 0}) == SIGRTMIN + 11 && info.si_value.sival_ptr == (void *)0x88 && info.si_overrun == 0,
	      "once in a century: overrun %d, value %p", info.si_overrun, info.si_value.sival_ptr);
	now = left(farther, &interval);
	CHECK(now > century - 300000000000LL && now <= century && interval == century, "in a century: %" PRId64 " ns left, then %" PRId64, now, interval);
	wanted = wl_set(SIGRTMIN + 10);
	CHECK(sigtimedwait(&wanted, &info, &(struct timespec){5, 0}) == SIGRTMIN + 10 && info.si_code == SI_TIMER && info.si_value.sival_ptr == (void *)0x77,
	      "the overrunning timer's signal: code %d, value %p", info.si_code, info.si_value.sival_ptr);
	CHECK(syscall(SYS_timer_getoverrun, overrunning) >= 20, "overruns are %ld", syscall(SYS_timer_getoverrun, overrunning));
	wanted = wl_set(SIGRTMIN + 9);
	for (int i = 0; i < 3; i++)
		CHECK(sigtimedwait(&wanted, &info, &(struct timespec){5, 0}) == SIGRTMIN + 9 && info.si_value.sival_ptr == (void *)0x1234567890abcdef, "the periodic timer is silent");
	go = 1;
	MUST0(pthread_join(thread, NULL));
	/* each one fires still, with its value */
	for (int i = 0; i < count - 1; i++) {
		set(ids[i], 0, 1000000, 0);
		wanted = wl_set(SIGRTMIN + 6);
		volatile uint64_t burnt = 0;
		int got = -1;
		for (int j = 0; j < 20000 && got == -1; j++) {
			for (int k = 0; k < 100000; k++)
				burnt += (uint64_t)k;
			got = sigtimedwait(&wanted, &info, &(struct timespec){0, 0});
		}
		CHECK(got == SIGRTMIN + 6 && info.si_value.sival_ptr == &ids[i], "%s: no signal, or another value", clocks[i].name);
	}
	/* the next timer that is made gets an id that was free */
	int fresh = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, NULL, 0);
	for (int i = 0; i < count; i++)
		CHECK(fresh != ids[i] && fresh != threaded && fresh != silent, "an id is given twice");
	wl_pass();
}
