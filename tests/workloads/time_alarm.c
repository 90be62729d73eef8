// SPDX-License-Identifier: Apache-2.0
/* alarm(): one that is due long after, and in children one that comes due about the time of the dump: exactly once. */
/* wl: same=no */
/* not compared: alarms become pending while it is looked at */
#include "wl.h"

static void soon(void *milliseconds)
{
	sigset_t set = wl_set(SIGALRM);
	siginfo_t info;
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, (intptr_t)milliseconds * 1000}}, NULL));
	wl_child_ready_wait();
	CHECK(sigtimedwait(&set, &info, &(struct timespec){20, 0}) == SIGALRM, "the alarm never came");
	CHECK(sigtimedwait(&set, &info, &(struct timespec){0, 300000000}) == -1, "it came twice");
	struct itimerval now;
	MUST(getitimer(ITIMER_REAL, &now));
	CHECK(!now.it_value.tv_sec && !now.it_value.tv_usec && !now.it_interval.tv_usec, "it is armed still");
	_exit(0);
}

int main(void)
{
	pid_t pids[4];
	static const intptr_t delays[] = {30, 100, 300, 990};
	wl_begin();
	alarm(1000);
	for (int i = 0; i < 4; i++)
		pids[i] = wl_child(soon, (void *)delays[i]);
	wl_ready_wait();
	unsigned left = alarm(0);
	CHECK(left <= 1000 && left > 700, "%u s left of 1000", left);
	for (int i = 0; i < 4; i++)
		wl_end(pids[i]);
	wl_pass();
}
