// SPDX-License-Identifier: Apache-2.0
/* Files of /proc: of the task itself, of its child, of the whole system; directories of a task. */
/* wl: */
#include "fd.h"

static pid_t number_after(int fd, const char *key)
{
	static char text[8192];
	ssize_t n = pread(fd, text, sizeof text - 1, 0);
	CHECK(n > 0, "pread: %s", strerror(errno));
	text[n] = 0;
	char *at = strstr(text, key);
	CHECK(at, "no %s", key);
	return atoi(at + strlen(key));
}

static void child(void *argument)
{
	(void)argument;
	wl_child_ready_wait();
}

int main(void)
{
	char path[40], text[100];
	wl_begin();
	pid_t pid = wl_child(child, NULL);
	int own = MUST(open("/proc/self/status", O_RDONLY));
	int memory = MUST(open("/proc/self/mem", O_RDWR | O_CLOEXEC));
	int directory = MUST(open("/proc/self", O_RDONLY | O_DIRECTORY));
	snprintf(path, sizeof path, "/proc/%d/status", pid);
	int other = MUST(open(path, O_RDONLY));
	int uptime = MUST(open("/proc/uptime", O_RDONLY));
	struct fd_facts was[] = {fd_look(own), fd_look(memory), fd_look(directory), fd_look(other), fd_look(uptime)};
	wl_ready_wait();
	for (int i = 0; i < 5; i++)
		fd_check(&was[i], (const char *[]){"own status", "mem", "directory", "child's status", "uptime"}[i]);
	CHECK(number_after(own, "\nPid:\t") == getpid(), "status is of %d", number_after(own, "\nPid:\t"));
	CHECK(number_after(other, "\nPid:\t") == pid, "the child's status is of %d", number_after(other, "\nPid:\t"));
	volatile int value = 42;
	int seen = 0;
	CHECK(pread64(memory, &seen, sizeof seen, (off64_t)(uintptr_t)&value) == sizeof seen && seen == 42, "mem shows %d", seen);
	MUST(faccessat(directory, "maps", R_OK, 0));
	CHECK(read(uptime, text, sizeof text) > 0, "uptime: %s", strerror(errno));
	wl_end(pid);
	wl_pass();
}
