// SPDX-License-Identifier: Apache-2.0
/* Process groups whose leaders have ended: one reaped, one still a zombie. */
/* wl: */
#include "wl.h"

static void member(void *argument)
{
	pid_t group = (pid_t)(intptr_t)argument;
	MUST(setpgid(0, group));
	wl_child_ready_wait();
	CHECK(getpgrp() == group, "process group is %d, was %d", getpgrp(), group);
	_exit(0);
}

static void leader(void *unused)
{
	(void)unused;
	MUST(setpgid(0, 0));
	wl_child_ready_wait();
	_exit(0);
}

int main(void)
{
	pid_t leaders[2], members[4];
	siginfo_t info;
	wl_begin();
	for (int i = 0; i < 2; i++) {
		leaders[i] = wl_child(leader, NULL);
		members[i * 2] = wl_child(member, (void *)(intptr_t)leaders[i]);
		members[i * 2 + 1] = wl_child(member, (void *)(intptr_t)leaders[i]);
		MUST(kill(leaders[i], SIGTERM));
	}
	wl_reap(leaders[0]);
	MUST(waitid(P_PID, (id_t)leaders[1], &info, WEXITED | WNOWAIT));
	wl_ready_wait();
	CHECK(kill(leaders[0], 0) == -1 && errno == ESRCH, "the reaped group leader lives");
	wl_reap(leaders[1]);
	for (int i = 0; i < 4; i++)
		CHECK(getpgid(members[i]) == leaders[i / 2], "member %d: group is %d", i, getpgid(members[i]));
	/* the groups can still be signalled and waited for */
	for (int i = 0; i < 2; i++) {
		MUST(kill(-leaders[i], SIGTERM));
		for (int j = 0; j < 2; j++) {
			int status;
			pid_t got = MUST(waitpid(-leaders[i], &status, 0));
			CHECK((got == members[i * 2] || got == members[i * 2 + 1]) && status == 0, "%d ended with 0x%x", got, status);
		}
	}
	wl_pass();
}
