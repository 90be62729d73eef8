// SPDX-License-Identifier: Apache-2.0
/* A session whose leader has ended: its members keep the session id, which no living process has. */
/* wl: */
#include "wl.h"

static int report[2];

static void member(int in_group)
{
	pid_t facts[3] = {getpid(), getsid(0), getpgrp()};
	(void)in_group;
	MUST(write(report[1], facts, sizeof facts));
	close(report[0]);
	close(report[1]);
	wl_wait();
	CHECK(getsid(0) == facts[1], "session is %d, was %d", getsid(0), facts[1]);
	CHECK(getpgrp() == facts[2], "process group is %d, was %d", getpgrp(), facts[2]);
	_exit(0);
}

int main(void)
{
	pid_t members[2][3];
	wl_begin();
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(pipe(report));
	pid_t leader = MUST(fork());
	if (leader == 0) {
		MUST(setsid());
		if (MUST(fork()) == 0)
			member(0); /* in the leader's group, too */
		if (MUST(fork()) == 0) {
			MUST(setpgid(0, 0));
			member(1);
		}
		_exit(0);
	}
	wl_reap(leader);
	MUST(read(report[0], members[0], sizeof members[0]));
	MUST(read(report[0], members[1], sizeof members[1]));
	close(report[0]);
	close(report[1]);
	wl_ready_wait();
	for (int i = 0; i < 2; i++) {
		CHECK(getsid(members[i][0]) == leader, "member %d: session is %d, was %d", i, getsid(members[i][0]), leader);
		wl_end(members[i][0]);
	}
	CHECK(kill(leader, 0) == -1 && errno == ESRCH, "the dead session leader lives");
	CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD, "there is a child that was not there before");
	wl_pass();
}
