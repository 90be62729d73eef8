// SPDX-License-Identifier: Apache-2.0
/* A process that may not use the instruction CPUID (x86), a child that has inherited that, and a thread that may. */
#include "wl.h"
#ifdef __x86_64__
#include <cpuid.h>

#define GET_CPUID 0x1011
#define SET_CPUID 0x1012

static bool may(void) { return MUST(syscall(SYS_arch_prctl, GET_CPUID, 0)); }

static volatile int up, go;

static void *thread_body(void *unused)
{
	MUST(syscall(SYS_arch_prctl, SET_CPUID, 1));
	up = 1;
	while (!go)
		usleep(50000);
	CHECK(may(), "the thread may not use CPUID any more");
	return unused;
}

static void child(void *unused)
{
	(void)unused;
	wl_child_ready_wait();
	CHECK(!may(), "the child may use CPUID now");
}

static void use(void *unused)
{
	unsigned a, b, c, d;
	(void)unused;
	wl_child_ready();
	__cpuid(0, a, b, c, d);
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	if (syscall(SYS_arch_prctl, SET_CPUID, 0))
		wl_skip("this processor, or this kernel, cannot forbid CPUID: %s", strerror(errno));
	MUST0(pthread_create(&thread, NULL, thread_body, NULL));
	while (!up)
		usleep(1000);
	pid_t inherited = wl_child(child, NULL);
	wl_ready_wait();
	CHECK(!may(), "the process may use CPUID now");
	int status;
	MUST(waitpid(wl_child(use, NULL), &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "whoever uses CPUID ends with status %#x", status);
	go = 1;
	MUST0(pthread_join(thread, NULL));
	wl_end(inherited);
	wl_pass();
}
#else
int main(void) { wl_skip("only x86 has it"); }
#endif
