// SPDX-License-Identifier: Apache-2.0
/* Parent-death signals: kept, and sent when the parent ends after the restore. */
/* wl: */
#include "wl.h"

static int *shared;

static void grandchild(void)
{
	sigset_t set = wl_set(SIGUSR1);
	siginfo_t info;
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
	shared[0] = 1;
	int got;
	do
		got = sigwaitinfo(&set, &info);
	while (got == -1 && errno == EINTR);
	int now = 0;
	MUST(prctl(PR_GET_PDEATHSIG, &now));
	shared[1] = got == SIGUSR1 && now == SIGUSR1 ? 1 : -1;
	_exit(0);
}

static void parent(void *unused)
{
	(void)unused;
	MUST(prctl(PR_SET_PDEATHSIG, SIGRTMIN + 7));
	if (MUST(fork()) == 0)
		grandchild();
	while (!shared[0])
		usleep(1000);
	wl_child_ready_wait();
	int now = 0;
	MUST(prctl(PR_GET_PDEATHSIG, &now));
	CHECK(now == SIGRTMIN + 7, "parent-death signal is %d, was %d", now, SIGRTMIN + 7);
	CHECK(shared[1] == 0, "the grandchild had its signal before its parent died");
	_exit(0);
}

int main(void)
{
	int now = -1;
	wl_begin();
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	shared = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pid_t pid = wl_child(parent, NULL);
	wl_ready_wait();
	MUST(prctl(PR_GET_PDEATHSIG, &now));
	CHECK(now == 0, "the root has a parent-death signal: %d", now);
	wl_end(pid);
	for (int i = 0; i < 5000 && !shared[1]; i++)
		usleep(1000);
	CHECK(shared[1] == 1, "the grandchild did not get the signal its parent's death sends (%d)", shared[1]);
	MUST(waitpid(-1, NULL, 0));
	wl_pass();
}
