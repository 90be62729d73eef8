// SPDX-License-Identifier: Apache-2.0
/* User and group ids: real, effective, saved, file system; groups; another set in a child and in one thread. */
/* wl: */
#include "wl.h"

#include <grp.h>
#include <sys/fsuid.h>

#ifdef SYS_setresuid32 /* 32-bit machines: the older calls know 16 bits */
#define ID_CALL(name) SYS_##name##32
#else
#define ID_CALL(name) SYS_##name
#endif
static volatile int go;

static void check(const char *who, unsigned r, unsigned e, unsigned s, unsigned f, int groups)
{
	unsigned now[3];
	MUST((int)syscall(ID_CALL(getresuid), &now[0], &now[1], &now[2]));
	CHECK(now[0] == r && now[1] == e && now[2] == s, "%s: uids are %u %u %u, were %u %u %u", who, now[0], now[1], now[2], r, e, s);
	CHECK((unsigned)setfsuid((uid_t)-1) == f, "%s: file system uid is %d, was %u", who, setfsuid((uid_t)-1), f);
	MUST((int)syscall(ID_CALL(getresgid), &now[0], &now[1], &now[2]));
	CHECK(now[0] == r + 100 && now[1] == e + 100 && now[2] == s + 100, "%s: gids are %u %u %u", who, now[0], now[1], now[2]);
	CHECK((unsigned)setfsgid((gid_t)-1) == f + 100, "%s: file system gid is %d", who, setfsgid((gid_t)-1));
	gid_t list[1000];
	int n = MUST(getgroups(1000, list));
	CHECK(n == groups, "%s: %d groups, were %d", who, n, groups);
	for (int i = 0; i < n; i++)
		CHECK(list[i] == 5000u + 3u * (unsigned)i, "%s: group %d is %u", who, i, list[i]);
}

static void become(unsigned r, unsigned e, unsigned s, unsigned f, int groups)
{
	gid_t list[1000];
	for (int i = 0; i < groups; i++)
		list[i] = 5000u + 3u * (unsigned)i;
	/* the system calls, which change this thread only */
	MUST((int)syscall(ID_CALL(setgroups), groups, list));
	MUST((int)syscall(ID_CALL(setresgid), r + 100, e + 100, s + 100));
	setfsgid(f + 100);
	MUST((int)syscall(ID_CALL(setresuid), r, e, s));
	setfsuid(f);
}

static void child(void *unused)
{
	(void)unused;
	become(1001, 1002, 1003, 1002, 0);
	wl_child_ready_wait();
	check("child", 1001, 1002, 1003, 1002, 0);
	_exit(0);
}

static void *body(void *unused)
{
	(void)unused;
	become(0, 1005, 0, 0, 3);
	go = 1;
	while (go != 2)
		usleep(50000);
	check("thread", 0, 1005, 0, 0, 3);
	return NULL;
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	if (getuid() != 0)
		wl_skip("needs root");
	pid_t pid = wl_child(child, NULL);
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!go)
		usleep(1000);
	become(0, 0, 1009, 1008, 300);
	wl_ready_wait();
	check("main thread", 0, 0, 1009, 1008, 300);
	go = 2;
	MUST0(pthread_join(thread, NULL));
	MUST(kill(pid, SIGTERM));
	wl_reap(pid);
	wl_pass();
}
