// SPDX-License-Identifier: Apache-2.0
/* A process in its parent's memory that is no thread (clone with CLONE_VM), with a descriptor table of its own. */
/* wl: */
#include "wl.h"

static volatile int step;
static char stack[65536] __attribute__((aligned(16)));

static int body(void *unused)
{
	(void)unused;
	/* Memory is shared with the parent, thread-local storage, too: only plain system calls here. */
	step = 1;
	sigset_t set = wl_set(SIGTERM);
	siginfo_t info;
	while (syscall(SYS_rt_sigtimedwait, &set, &info, NULL, 8L) != SIGTERM)
		;
	if (step != 2)
		return 2;
	step = 3;
	return 0;
}

int main(void)
{
	wl_begin();
	pid_t child = MUST(clone(body, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL));
	while (step != 1)
		usleep(1000);
	wl_ready_wait();
	CHECK(syscall(SYS_kcmp, getpid(), child, 1 /* KCMP_VM */, 0, 0) == 0, "kcmp: two address spaces");
	CHECK(syscall(SYS_kcmp, getpid(), child, 2 /* KCMP_FILES */, 0, 0) != 0, "kcmp: one descriptor table");
	step = 2;
	wl_end(child);
	CHECK(step == 3, "the child's store is not seen: %d", step);
	wl_pass();
}
