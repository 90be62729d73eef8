// SPDX-License-Identifier: Apache-2.0
/* All 16 resource limits, soft and hard, lowered in two processes to values of their own. */
/* wl: */
#include "wl.h"

static rlim_t wanted(int resource, int process, int hard)
{
	if (resource == RLIMIT_AS || resource == RLIMIT_DATA || resource == RLIMIT_STACK)
		return (64UL << 20) * (2UL + (unsigned)hard + (unsigned)process * 2UL);
	if (resource == RLIMIT_NICE || resource == RLIMIT_RTPRIO)
		return 0;
	if (resource == RLIMIT_CPU || resource == RLIMIT_RTTIME)
		return 5000000UL + 10UL * (unsigned)process + (unsigned)hard;
	if (resource == RLIMIT_FSIZE) /* a dump has to write more than this */
		return 4096UL * (1UL + (unsigned)hard);
	if (resource == RLIMIT_NOFILE)
		return 50UL + 10UL * (unsigned)process + (unsigned)hard;
	if (resource == RLIMIT_NPROC)
		return 3000UL + 10UL * (unsigned)process + (unsigned)hard;
	return 1000UL + 7UL * (unsigned)resource + 100UL * (unsigned)process + (unsigned)hard;
}

static void limit(int process)
{
	for (int i = 0; i < 16; i++) {
		struct rlimit now, new = {wanted(i, process, 0), wanted(i, process, 1)};
		MUST(getrlimit((__rlimit_resource_t)i, &now));
		if (new.rlim_max > now.rlim_max)
			new.rlim_max = now.rlim_max;
		if (new.rlim_cur > new.rlim_max)
			new.rlim_cur = new.rlim_max;
		MUST(setrlimit((__rlimit_resource_t)i, &new));
	}
}

static void check(const struct rlimit *was, const char *who)
{
	for (int i = 0; i < 16; i++) {
		struct rlimit now;
		MUST(getrlimit((__rlimit_resource_t)i, &now));
		CHECK(now.rlim_cur == was[i].rlim_cur && now.rlim_max == was[i].rlim_max, "%s: limit %d is %lu/%lu, was %lu/%lu", who, i, now.rlim_cur,
		      now.rlim_max, was[i].rlim_cur, was[i].rlim_max);
	}
}

static void child(void *unused)
{
	struct rlimit was[16];
	(void)unused;
	limit(1);
	for (int i = 0; i < 16; i++)
		MUST(getrlimit((__rlimit_resource_t)i, &was[i]));
	wl_child_ready_wait();
	check(was, "child");
	_exit(0);
}

int main(void)
{
	struct rlimit was[16];
	wl_begin();
	pid_t pid = wl_child(child, NULL);
	limit(0);
	for (int i = 0; i < 16; i++)
		MUST(getrlimit((__rlimit_resource_t)i, &was[i]));
	char *memory = MUST(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(memory, 1 << 20, 1); /* more than RLIMIT_FSIZE lets it write */
	wl_ready_wait();
	check(was, "root");
	wl_same(memory, 1 << 20, 1, "memory");
	wl_end(pid);
	wl_pass();
}
