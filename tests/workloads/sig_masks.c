// SPDX-License-Identifier: Apache-2.0
/* Blocked signals: another mask in each thread, also of a thread inside sigsuspend and ppoll (which go back to theirs). */
/* wl: */
#include "wl.h"

enum { threads = 6 };
static volatile sig_atomic_t caught[threads];
static volatile int go;
static __thread int me;
static pid_t tids[threads];

static void handler(int number)
{
	(void)number;
	caught[me]++;
}

static sigset_t wanted(int number)
{
	sigset_t set = wl_set(SIGTERM);
	for (int i = 1; i <= 64; i++)
		if (i * (number + 2) % 7 == 1 && i != SIGKILL && i != SIGSTOP && i != 32 && i != 33)
			sigaddset(&set, i);
	sigaddset(&set, SIGUSR1);
	return set;
}

static void check(int number)
{
	sigset_t now, was = wanted(number);
	MUST0(pthread_sigmask(SIG_BLOCK, NULL, &now));
	for (int i = 1; i <= 64; i++)
		CHECK(sigismember(&now, i) == sigismember(&was, i), "thread %d: signal %d is %sblocked", number, i, sigismember(&now, i) ? "" : "not ");
}

static void *body(void *argument)
{
	sigset_t mask, all;
	me = (int)(intptr_t)argument;
	mask = wanted(me);
	MUST0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
	sigfillset(&all);
	sigdelset(&all, SIGUSR1);
	__atomic_store_n(&tids[me], gettid(), __ATOMIC_SEQ_CST);
	if (me == 1) {
		while (!caught[me]) /* inside: all but SIGUSR1 blocked; then the old mask again */
			sigsuspend(&all);
	} else if (me == 2) {
		while (!caught[me])
			ppoll(NULL, 0, NULL, &all);
	} else
		while (!go)
			usleep(50000);
	check(me);
	return NULL;
}

int main(void)
{
	pthread_t ids[threads];
	wl_begin();
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler}, NULL));
	for (intptr_t i = 1; i < threads; i++)
		MUST0(pthread_create(&ids[i], NULL, body, (void *)i));
	for (int i = 1; i < threads; i++) {
		char path[64], state[64] = "";
		while (state[0] != 'S') {
			usleep(1000);
			pid_t tid = __atomic_load_n(&tids[i], __ATOMIC_SEQ_CST);
			if (tid) {
				snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
				wl_proc_field(path, "State", state, sizeof state);
			}
		}
	}
	sigset_t mask = wanted(0);
	MUST0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
	wl_ready_wait();
	check(0);
	CHECK(!caught[1] && !caught[2], "a signal came that nobody sent");
	MUST((int)syscall(SYS_tgkill, getpid(), tids[1], SIGUSR1));
	MUST((int)syscall(SYS_tgkill, getpid(), tids[2], SIGUSR1));
	go = 1;
	for (int i = 1; i < threads; i++)
		MUST0(pthread_join(ids[i], NULL));
	CHECK(caught[1] == 1 && caught[2] == 1, "caught %d and %d times", caught[1], caught[2]);
	wl_pass();
}
