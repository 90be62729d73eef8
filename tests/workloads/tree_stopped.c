// SPDX-License-Identifier: Apache-2.0
/* Tasks stopped by SIGSTOP and by SIGTSTP, with one thread and with three; the parent has seen one stop, not the other. */
/* wl: */
#include "wl.h"

static int up;

static void *sleeper(void *unused)
{
	(void)unused;
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return NULL;
}

static void body(void *threads)
{
	pthread_t thread;
	for (intptr_t i = 0; i < (intptr_t)threads; i++)
		MUST0(pthread_create(&thread, NULL, sleeper, NULL));
	while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) < (intptr_t)threads)
		usleep(1000);
	wl_child_ready_wait();
	_exit(0);
}

int main(void)
{
	static const int stops[] = {SIGSTOP, SIGSTOP, SIGTSTP};
	pid_t pids[3];
	int status;
	wl_begin();
	for (int i = 0; i < 3; i++) {
		pids[i] = wl_child(body, (void *)(intptr_t)(i == 1 ? 2 : 0));
		MUST(setpgid(pids[i], 0)); /* an orphaned group would not stop by SIGTSTP: its parent is in this session */
		MUST(kill(pids[i], stops[i]));
	}
	CHECK(MUST(waitpid(pids[0], &status, WUNTRACED)) == pids[0] && WIFSTOPPED(status), "status 0x%x", status);
	for (int i = 0; i < 3; i++)
		while (wl_state(pids[i]) != 'T')
			usleep(1000);
	wl_ready_wait();
	for (int i = 0; i < 3; i++)
		CHECK(wl_state(pids[i]) == 'T', "child %d is %c, was stopped", i, wl_state(pids[i]));
	/* a stopped task does not take SIGTERM until it is continued */
	for (int i = 0; i < 3; i++)
		MUST(kill(pids[i], SIGTERM));
	usleep(50000);
	for (int i = 0; i < 3; i++) {
		CHECK(wl_state(pids[i]) == 'T', "child %d left its stop", i);
		MUST(kill(pids[i], SIGCONT));
		wl_reap(pids[i]);
	}
	wl_pass();
}
