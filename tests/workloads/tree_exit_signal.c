// SPDX-License-Identifier: Apache-2.0
/* Children whose end brings their parent another signal than SIGCHLD, or none (clone(2)); one of them a zombie. */
/* wl: */
#include "wl.h"

static pid_t born(int number, int status)
{
	pid_t pid = MUST((pid_t)WL_CLONE(number));
	if (pid)
		return pid;
	if (status >= 0)
		_exit(status);
	wl_wait();
	_exit(7);
}

static int exit_signal(pid_t pid)
{
	char path[64], text[1024] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int file = MUST(open(path, O_RDONLY | O_CLOEXEC));
	MUST(read(file, text, sizeof text - 1));
	close(file);
	char *at = strrchr(text, ')') + 2;
	for (int i = 3; i < 38; i++)
		at = strchr(at, ' ') + 1;
	return atoi(at);
}

int main(void)
{
	const int numbers[] = {SIGUSR1, SIGRTMIN + 3, 0, SIGCHLD, SIGUSR2};
	enum { count = sizeof numbers / sizeof numbers[0] };
	pid_t pids[count];
	sigset_t set;
	siginfo_t info;
	wl_begin();
	sigemptyset(&set);
	for (int i = 0; i < count; i++)
		if (numbers[i] && numbers[i] != SIGCHLD) /* that one also comes with a stop */
			sigaddset(&set, numbers[i]);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	for (int i = 0; i < count; i++)
		pids[i] = born(numbers[i], i == count - 1 ? 42 : -1);
	CHECK(sigwaitinfo(&set, &info) == SIGUSR2 && info.si_pid == pids[count - 1], "got %d", info.si_signo);
	wl_ready_wait();
	CHECK(sigtimedwait(&set, &info, &(struct timespec){0, 0}) == -1, "signal %d, which nobody has sent", info.si_signo);
	for (int i = 0; i < count; i++)
		EXPECT(exit_signal(pids[i]) == numbers[i], "child %d: its end brings signal %d, not %d", i, exit_signal(pids[i]), numbers[i]);
	for (int i = 0; i < count; i++) {
		int status = 0;
		bool zombie = i == count - 1;
		if (!zombie) {
			MUST(kill(pids[i], SIGTERM));
			if (numbers[i] && numbers[i] != SIGCHLD)
				CHECK(sigwaitinfo(&set, &info) == numbers[i] && info.si_pid == pids[i], "its end brought signal %d", info.si_signo);
		}
		CHECK(waitpid(pids[i], &status, numbers[i] == SIGCHLD ? 0 : __WCLONE) == pids[i], "child %d: %s", i, strerror(errno));
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (zombie ? 42 : 7), "child %d: status 0x%x", i, status);
	}
	CHECK(sigtimedwait(&set, &info, &(struct timespec){0, 0}) == -1, "signal %d, which nobody has sent", info.si_signo);
	wl_pass();
}
