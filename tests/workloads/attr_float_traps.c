// SPDX-License-Identifier: Apache-2.0
/* A process of ppc64le that is told of floating-point exceptions and has a policy for unaligned accesses, a child that
 * has inherited both, and a thread that has neither. */
/* wl: libs=-lm */
#include "wl.h"
#ifdef __powerpc64__
#include <fenv.h>

static unsigned traps(void)
{
	unsigned mode = 77;
	MUST(prctl(PR_GET_FPEXC, &mode));
	return mode;
}

static unsigned unaligned(void)
{
	unsigned policy = 77;
	MUST(prctl(PR_GET_UNALIGN, &policy));
	return policy;
}

static volatile int up, go;

static void *thread_body(void *unused)
{
	MUST(prctl(PR_SET_FPEXC, PR_FP_EXC_DISABLED));
	MUST(prctl(PR_SET_UNALIGN, 0));
	up = 1;
	while (!go)
		usleep(50000);
	CHECK(traps() == PR_FP_EXC_DISABLED && unaligned() == 0, "the thread has %#x, %u", traps(), unaligned());
	return unused;
}

static void child(void *unused)
{
	(void)unused;
	wl_child_ready_wait();
	CHECK(traps() == PR_FP_EXC_PRECISE && unaligned() == PR_UNALIGN_NOPRINT, "the child has %#x, %u", traps(), unaligned());
}

static void divide(void *by)
{
	wl_child_ready();
	*(volatile double *)by = 1 / *(volatile double *)by;
}

int main(void)
{
	pthread_t thread;
	double nothing = 0;
	wl_begin();
	CHECK(feenableexcept(FE_DIVBYZERO) != -1, "no exceptions");
	MUST(prctl(PR_SET_UNALIGN, PR_UNALIGN_NOPRINT));
	MUST0(pthread_create(&thread, NULL, thread_body, NULL));
	while (!up)
		usleep(1000);
	pid_t inherited = wl_child(child, NULL);
	wl_ready_wait();
	CHECK(traps() == PR_FP_EXC_PRECISE && unaligned() == PR_UNALIGN_NOPRINT, "it has %#x, %u", traps(), unaligned());
	int status;
	MUST(waitpid(wl_child(divide, &nothing), &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGFPE, "whoever divides by 0 ends with status %#x", status);
	go = 1;
	MUST0(pthread_join(thread, NULL));
	wl_end(inherited);
	wl_pass();
}
#else
int main(void) { wl_skip("only ppc64le has it"); }
#endif
