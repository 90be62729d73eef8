// SPDX-License-Identifier: Apache-2.0
/* Two processes with one table of signal handlers and one memory (clone with CLONE_VM and CLONE_SIGHAND). */
/* wl: */
#include "wl.h"

static volatile int step;
static char stack[65536] __attribute__((aligned(16)));

static void handler(int number) { (void)number; }

static int body(void *unused)
{
	(void)unused;
	struct sigaction action = {.sa_handler = handler};
	sigset_t set = wl_set(SIGTERM);
	siginfo_t info;
	step = 1;
	while (syscall(SYS_rt_sigtimedwait, &set, &info, NULL, 8L) != SIGTERM)
		;
	if (sigaction(SIGUSR2, &action, NULL)) /* changes the parent's, too */
		return 2;
	return 0;
}

int main(void)
{
	struct sigaction now;
	wl_begin();
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART}, NULL));
	pid_t child = MUST(clone(body, stack + sizeof stack, CLONE_VM | CLONE_SIGHAND | SIGCHLD, NULL));
	while (step != 1)
		usleep(1000);
	wl_ready_wait();
	CHECK(syscall(SYS_kcmp, getpid(), child, 4 /* KCMP_SIGHAND */, 0, 0) == 0, "kcmp: two tables of handlers");
	MUST(sigaction(SIGUSR1, NULL, &now));
	CHECK(now.sa_handler == handler, "SIGUSR1 has lost its handler");
	MUST(sigaction(SIGUSR2, NULL, &now));
	CHECK(now.sa_handler == SIG_DFL, "SIGUSR2 has a handler");
	wl_end(child);
	MUST(sigaction(SIGUSR2, NULL, &now));
	CHECK(now.sa_handler == handler, "the child's sigaction did not reach the parent");
	wl_pass();
}
