// SPDX-License-Identifier: Apache-2.0
/* Zombies of other users: waitid(2) tells their parent whose they were. */
/* wl: */
#include "wl.h"

enum { user = 1234, group = 4321 };

static pid_t dead(int number)
{
	siginfo_t info;
	pid_t child = MUST(fork());
	if (child == 0) {
		MUST(setresgid(group, group, group));
		MUST(setresuid(user, user, user));
		if (number)
			kill(getpid(), number);
		_exit(8);
	}
	MUST(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT));
	return child;
}

int main(void)
{
	siginfo_t info;
	wl_begin();
	pid_t zombies[] = {dead(0), dead(SIGKILL)};
	wl_ready_wait();
	for (int i = 0; i < 2; i++) {
		MUST(waitid(P_PID, (id_t)zombies[i], &info, WEXITED));
		CHECK(info.si_uid == user, "zombie %d was user %d's, was %d's before", i, info.si_uid, user);
		CHECK(info.si_status == (i ? SIGKILL : 8), "zombie %d has the status %d", i, info.si_status);
	}
	wl_pass();
}
