// SPDX-License-Identifier: Apache-2.0
/* Zombies: with exit statuses, killed by signals, a zombie that led a session. */
/* wl: */
#include "wl.h"

static const struct {
	int exit, signal, leads;
	const char *name;
} kinds[] = {
	{0, 0, 0, "quiet"}, {42, 0, 0, "with status"}, {255, 0, 0, "highest"}, {0, SIGKILL, 0, "killed"},
	{0, SIGSEGV, 0, "segv"}, {0, 37, 0, "realtime"}, {7, 0, 1, "led a session"},
};
enum { count = sizeof kinds / sizeof kinds[0] };

int main(void)
{
	pid_t pids[count];
	siginfo_t info;
	wl_begin();
	MUST(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}));
	for (int i = 0; i < count; i++) {
		pids[i] = MUST(fork());
		if (pids[i] == 0) {
			MUST(prctl(PR_SET_NAME, kinds[i].name));
			if (kinds[i].leads)
				MUST(setsid());
			if (kinds[i].signal)
				kill(getpid(), kinds[i].signal);
			_exit(kinds[i].exit);
		}
		MUST(waitid(P_PID, (id_t)pids[i], &info, WEXITED | WNOWAIT));
	}
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		int status;
		char path[64], name[64] = "";
		snprintf(path, sizeof path, "/proc/%d/status", pids[i]);
		wl_proc_field(path, "Name", name, sizeof name);
		CHECK(!strcmp(name, kinds[i].name), "zombie %d is called %s, was %s", i, name, kinds[i].name);
		pid_t got = waitpid(pids[i], &status, WNOHANG);
		CHECK(got == pids[i], "zombie %d (%s): waitpid gives %d", i, kinds[i].name, got);
		if (kinds[i].signal)
			CHECK(WIFSIGNALED(status) && WTERMSIG(status) == kinds[i].signal, "zombie %d: status is 0x%x, signal was %d", i, status, kinds[i].signal);
		else
			CHECK(WIFEXITED(status) && WEXITSTATUS(status) == kinds[i].exit, "zombie %d: status is 0x%x, exit was %d", i, status, kinds[i].exit);
	}
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "more children than before");
	wl_pass();
}
