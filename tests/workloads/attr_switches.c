// SPDX-License-Identifier: Apache-2.0
/* What CRIU's images have no room for: CPU affinity and I/O priority of threads, the time stamp counter turned off,
 * machine check policy, speculation control, memory-deny-write-execute, THP switched off but where advised. */
/* wl: */
#include "wl.h"

#include <sched.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
enum { IOPRIO_WHO_PROCESS = 1, BEST_EFFORT_6 = 2 << 13 | 6, IDLE = 3 << 13 };
static volatile int up, go;

static unsigned long cpus(void)
{
	unsigned long mask = 0;
	MUST((int)syscall(SYS_sched_getaffinity, 0, sizeof mask, &mask));
	return mask;
}

static void *body(void *unused)
{
	(void)unused;
	unsigned long mask = 1;
	MUST((int)syscall(SYS_sched_setaffinity, 0, sizeof mask, &mask));
	MUST((int)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IDLE));
	up = 1;
	while (!go)
		usleep(50000);
	CHECK(cpus() == 1, "second thread's CPUs are %lx", cpus());
	CHECK(syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) == IDLE, "second thread's I/O priority is %lx", syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0));
	return NULL;
}

static void child(void *unused)
{
	(void)unused;
	int tsc = 0, deny = prctl(PR_SET_MDWE, 1, 0, 0, 0);
	int speculation = prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0);
	int was = prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0);
	int huge = prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0) ? prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) : 0, huge_was = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	MUST(huge);
	MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	bool has_tsc = prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0; /* of x86 */
	wl_child_ready_wait();
	if (has_tsc) {
		MUST(prctl(PR_GET_TSC, &tsc));
		CHECK(tsc == PR_TSC_SIGSEGV, "the time stamp counter may be read");
		MUST(prctl(PR_SET_TSC, PR_TSC_ENABLE));
	}
	CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY, "machine check policy is %d", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0));
	CHECK(deny || prctl(PR_GET_MDWE, 0, 0, 0, 0) == 1, "memory may be made executable");
	CHECK(prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0) == was, "speculation control is %d, was %d (set: %d)",
	      prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0), was, speculation);
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == huge_was, "THP switch is %d, was %d", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), huge_was);
	_exit(0);
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	pid_t pid = wl_child(child, NULL);
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!up)
		usleep(1000);
	unsigned long was = cpus();
	MUST((int)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, BEST_EFFORT_6));
	wl_ready_wait();
	CHECK(cpus() == was, "CPUs are %lx, were %lx", cpus(), was);
	CHECK(syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) == BEST_EFFORT_6, "I/O priority is %lx", syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0));
	go = 1;
	MUST0(pthread_join(thread, NULL));
	wl_end(pid);
	wl_pass();
}
