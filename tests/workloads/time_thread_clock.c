// SPDX-License-Identifier: Apache-2.0
/* POSIX timers that count the CPU time of another thread than the first, and periodic ones that notify a thread. */
/* wl: */
#include "wl.h"

struct event { union sigval value; int number, notify; int tid; int unused[11]; };
static int gate[2]; /* the threads wait at it without using any CPU time, however slow the machine is */
static volatile pid_t tids[2];
static int clocks[2], calls[2];

static int make(clockid_t clock, int notify, int number, int tid)
{
	struct event event = {.value.sival_int = 7, .number = number, .notify = notify, .tid = tid};
	int id = -1;
	MUST((int)syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

static void set(int id, int64_t ns, int64_t interval)
{
	struct itimerspec spec = {{interval / 1000000000, interval % 1000000000}, {ns / 1000000000, ns % 1000000000}};
	MUST((int)syscall(SYS_timer_settime, id, 0L, &spec, NULL));
}

static int64_t left(int id)
{
	struct itimerspec spec;
	MUST((int)syscall(SYS_timer_gettime, id, &spec));
	return spec.it_value.tv_sec * 1000000000LL + spec.it_value.tv_nsec;
}

static void burn(void)
{
	struct timespec start, now;
	MUST(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start));
	do
		MUST(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now));
	while ((now.tv_sec - start.tv_sec) * 1000000000LL + now.tv_nsec - start.tv_nsec < 30000000);
}

static void *body(void *argument)
{
	int i = (int)(intptr_t)argument;
	sigset_t wanted = wl_set(SIGRTMIN + 4 + i);
	siginfo_t info;
	clocks[i] = make(CLOCK_THREAD_CPUTIME_ID, SIGEV_NONE, 0, 0);
	set(clocks[i], 1000000000000LL, 0);
	calls[i] = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 4 + i, gettid());
	set(calls[i], 5000000, 5000000);
	do
		sigpending(&wanted);
	while (!sigismember(&wanted, SIGRTMIN + 4 + i));
	tids[i] = gettid();
	char byte;
	MUST(read(gate[0], &byte, 1));
	wanted = wl_set(SIGRTMIN + 4 + i);
	for (int n = 0; n < 3; n++)
		CHECK(sigtimedwait(&wanted, &info, &(struct timespec){10, 0}) == SIGRTMIN + 4 + i && info.si_code == SI_TIMER && info.si_value.sival_int == 7,
		      "thread %d: no signal %d of its timer, or another", i, n);
	int64_t mine = left(clocks[i]);
	burn();
	CHECK(left(clocks[i]) <= mine - 25000000, "thread %d: its clock's timer stands still", i);
	return NULL;
}

int main(void)
{
	pthread_t threads[2];
	wl_begin();
	MUST(pipe(gate));
	sigset_t all = wl_set(SIGRTMIN + 4);
	sigaddset(&all, SIGRTMIN + 5);
	MUST0(pthread_sigmask(SIG_BLOCK, &all, NULL));
	for (int i = 0; i < 2; i++) {
		MUST0(pthread_create(&threads[i], NULL, body, (void *)(intptr_t)i));
		while (!tids[i])
			usleep(1000);
	}
	int mine = make(CLOCK_THREAD_CPUTIME_ID, SIGEV_NONE, 0, 0);
	set(mine, 1000000000000LL, 0);
	wl_ready_wait();
	int64_t was = left(mine), theirs[2] = {left(clocks[0]), left(clocks[1])};
	burn();
	CHECK(left(mine) <= was - 25000000, "the first thread's clock's timer stands still");
	for (int i = 0; i < 2; i++)
		CHECK(left(clocks[i]) > theirs[i] - 25000000, "the timer of thread %d counts the first thread's time", i);
	MUST(write(gate[1], "xx", 2));
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_pass();
}
