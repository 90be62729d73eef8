// SPDX-License-Identifier: Apache-2.0
/* As many groups as the kernel allows (65,536); a thread with others, an odd name, and most that a thread can have of its
 * own; limits far below what is in use. */
/* wl: */
#include "wl.h"

#include <grp.h>

#ifdef SYS_setgroups32 /* the other takes numbers of 16 bits there */
#define SET_GROUPS SYS_setgroups32
#else
#define SET_GROUPS SYS_setgroups
#endif

enum { many = 65536, IOPRIO_IDLE = 3 << 13 };
static const char odd[16] = "a)\n(\xff\x80 \x1b[31m%";
static pthread_barrier_t barrier;
static gid_t groups[many], got[many];

static void *thread(void *unused)
{
	gid_t few[2] = {7, 9};
	struct sched_param zero = {0};
	cpu_set_t one;
	char name[20] = "";
	MUST(syscall(SET_GROUPS, 2L, few)); /* the C library would ask all threads to */
	MUST(prctl(PR_SET_NAME, odd));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0));
	MUST(sched_setscheduler(0, SCHED_IDLE | SCHED_RESET_ON_FORK, &zero));
	MUST(syscall(SYS_ioprio_set, 1L, 0L, (long)IOPRIO_IDLE));
	MUST(sched_getaffinity(0, sizeof one, &one));
	int cpu = 0;
	while (!CPU_ISSET(cpu, &one))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	MUST(sched_setaffinity(0, sizeof one, &one));
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	EXPECT(getgroups(many, got) == 2 && got[0] == 7 && got[1] == 9, "the thread has other groups");
	MUST(prctl(PR_GET_NAME, name));
	EXPECT(!strcmp(name, odd), "the thread has another name");
	EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "the thread may gain rights");
	EXPECT(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) == 1, "the thread's slack is another");
	EXPECT(sched_getscheduler(0) == (SCHED_IDLE | SCHED_RESET_ON_FORK), "its policy is %x", (unsigned)sched_getscheduler(0));
	EXPECT(syscall(SYS_ioprio_get, 1L, 0L) == IOPRIO_IDLE, "its I/O priority is another");
	MUST(sched_getaffinity(0, sizeof one, &one));
	EXPECT(CPU_COUNT(&one) == 1, "the thread may run on %d CPUs", CPU_COUNT(&one));
	return unused;
}

int main(void)
{
	static const int low[] = {RLIMIT_STACK, RLIMIT_MEMLOCK, RLIMIT_NPROC, RLIMIT_SIGPENDING, RLIMIT_RSS, RLIMIT_MSGQUEUE, RLIMIT_CORE};
	pthread_t other;
	wl_begin();
	for (int i = 0; i < many; i++)
		groups[i] = 3 * (gid_t)i + 1;
	if (setgroups(many, groups))
		wl_skip("no such groups: %s", strerror(errno));
	MUST(prctl(PR_SET_NAME, ""));
	MUST(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
	MUST0(pthread_barrier_init(&barrier, NULL, 2));
	MUST0(pthread_create(&other, NULL, thread, NULL));
	pthread_barrier_wait(&barrier);
	for (size_t i = 0; i < sizeof low / sizeof *low; i++)
		MUST(setrlimit(low[i], &(struct rlimit){0, 4096}));
	MUST(setrlimit(RLIMIT_NOFILE, &(struct rlimit){1, 2}));
	MUST(setrlimit(RLIMIT_FSIZE, &(struct rlimit){512, 1024}));
	wl_ready_wait();
	EXPECT(getgroups(many, got) == many && !memcmp(got, groups, sizeof got), "the groups are others");
	EXPECT(prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0) == 1, "capabilities are not kept any more");
	EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "the process may gain no rights");
	pthread_barrier_wait(&barrier);
	MUST0(pthread_join(other, NULL));
	wl_pass();
}
