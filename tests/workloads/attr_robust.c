// SPDX-License-Identifier: Apache-2.0
/* Robust futexes: a thread and a process that hold robust mutexes and end after the dump; others get EOWNERDEAD. */
/* wl: */
#include "wl.h"

static pthread_mutex_t local, *common;
static volatile int locked, go;

static void init(pthread_mutex_t *mutex, bool shared)
{
	pthread_mutexattr_t attributes;
	MUST0(pthread_mutexattr_init(&attributes));
	MUST0(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
	if (shared)
		MUST0(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
	MUST0(pthread_mutex_init(mutex, &attributes));
}

static void *body(void *unused)
{
	(void)unused;
	MUST0(pthread_mutex_lock(&local));
	locked = 1;
	while (!go)
		usleep(50000);
	syscall(SYS_exit, 0); /* without unlocking, and without the C library's help */
	return NULL;
}

static void child(void *unused)
{
	(void)unused;
	MUST0(pthread_mutex_lock(common));
	wl_child_ready_wait();
	kill(getpid(), SIGKILL);
}

int main(void)
{
	pthread_t thread;
	struct timespec end;
	void *head, *now;
	size_t size;
	int status;
	wl_begin();
	common = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	init(&local, false);
	init(common, true);
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!locked)
		usleep(1000);
	pid_t pid = wl_child(child, NULL);
	MUST((int)syscall(SYS_get_robust_list, 0, &head, &size));
	wl_ready_wait();
	MUST((int)syscall(SYS_get_robust_list, 0, &now, &size));
	CHECK(now == head, "the robust list is at %p, was at %p", now, head);
	CHECK(pthread_mutex_trylock(&local) == EBUSY, "the thread's mutex is not locked");
	CHECK(pthread_mutex_trylock(common) == EBUSY, "the child's mutex is not locked");
	go = 1;
	MUST(kill(pid, SIGTERM));
	MUST(waitpid(pid, &status, 0));
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 10;
	status = pthread_mutex_timedlock(&local, &end);
	CHECK(status == EOWNERDEAD, "the dead thread's mutex: %s", strerror(status));
	status = pthread_mutex_timedlock(common, &end);
	CHECK(status == EOWNERDEAD, "the dead process's mutex: %s", strerror(status));
	wl_pass();
}
