// SPDX-License-Identifier: Apache-2.0
/* Stopped tasks with children of their own that have ended or stopped, whose news they had, or have yet to get. */
/* wl: */
#include "wl.h"

enum { HEARD, FATAL, UNHEARD, BLOCKED, STOPPED, COUNT };
static const char *const names[] = {"heard", "fatal", "unheard", "blocked", "stopped"};
static const int stops[] = {SIGSTOP, SIGTSTP, SIGSTOP, SIGTSTP, SIGSTOP};
static pid_t *child; /* of each; all see it */
static volatile sig_atomic_t caught;

static void on_child(int number)
{
	(void)number;
	caught++;
}

static int pending(int number)
{
	sigset_t set;
	MUST(sigpending(&set));
	return sigismember(&set, number);
}

static void parent(void *which)
{
	intptr_t is = (intptr_t)which;
	int number = is == FATAL ? SIGUSR1 : SIGCHLD, status;
	sigset_t set = wl_set(number);
	siginfo_t info;
	if (is == UNHEARD) {
		MUST(sigaction(SIGCHLD, &(struct sigaction){.sa_handler = on_child}, NULL));
	} else {
		MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	}
	pid_t born = MUST((pid_t)WL_CLONE(number));
	if (born == 0) {
		if (is == UNHEARD || is == STOPPED)
			wl_wait();
		_exit((int)(40 + is));
	}
	child[is] = born;
	if (is != UNHEARD && is != STOPPED) {
		MUST(waitid(P_PID, (id_t)born, &info, WEXITED | WNOWAIT | __WALL));
		if (is != BLOCKED)
			CHECK(sigwaitinfo(&set, &info) == number && info.si_pid == born, "%s: got %d", names[is], info.si_signo);
	}
	if (is != BLOCKED && is != UNHEARD)
		MUST(sigprocmask(SIG_UNBLOCK, &set, NULL));
	wl_child_ready_wait();
	if (is == UNHEARD)
		CHECK(caught == 1, "the handler of SIGCHLD has run %d times", caught);
	if (is == BLOCKED) {
		CHECK(sigtimedwait(&set, &info, &(struct timespec){0, 0}) == SIGCHLD, "SIGCHLD is not pending any more");
		CHECK(info.si_pid == born && info.si_code == CLD_EXITED && info.si_status == 40 + BLOCKED, "of %d, code %d", info.si_pid, info.si_code);
	}
	CHECK(!pending(number), "%s: signal %d is pending", names[is], number);
	if (is == STOPPED) {
		CHECK(MUST(waitpid(born, &status, WUNTRACED | WNOHANG)) == born && WIFSTOPPED(status), "its stop is forgotten");
		MUST(kill(born, SIGTERM));
		MUST(kill(born, SIGCONT));
	}
	CHECK(MUST(waitpid(born, &status, __WALL)) == born && WIFEXITED(status) && WEXITSTATUS(status) == 40 + is,
		"%s: status 0x%x", names[is], status);
	_exit(0);
}

static void await(pid_t pid, char state)
{
	while (wl_state(pid) != state)
		usleep(1000);
}

int main(void)
{
	pid_t pids[COUNT];
	wl_begin();
	child = MUST(mmap(NULL, COUNT * sizeof *child, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < COUNT; i++) {
		pids[i] = wl_child(parent, (void *)(intptr_t)i);
		MUST(setpgid(pids[i], 0));
		if (i == STOPPED) {
			MUST(kill(child[i], SIGSTOP));
			await(child[i], 'T');
		}
		MUST(kill(pids[i], stops[i]));
		await(pids[i], 'T');
	}
	MUST(kill(child[UNHEARD], SIGTERM));
	await(child[UNHEARD], 'Z');
	wl_ready_wait();
	for (int i = 0; i < COUNT; i++)
		EXPECT(wl_state(pids[i]) == 'T', "%s is %c, was stopped", names[i], wl_state(pids[i]));
	for (int i = 0; i < COUNT; i++) {
		MUST(kill(pids[i], SIGCONT));
		wl_end(pids[i]);
	}
	wl_pass();
}
