// SPDX-License-Identifier: Apache-2.0
/* Which memory goes into core dumps (coredump_filter), another in each process. */
/* wl: */
#include "wl.h"

static void set(const char *value)
{
	int fd = MUST(open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC));
	MUST(write(fd, value, strlen(value)));
	close(fd);
}

static long get(void)
{
	char text[32] = "";
	int fd = MUST(open("/proc/self/coredump_filter", O_RDONLY | O_CLOEXEC));
	MUST(read(fd, text, 31));
	close(fd);
	return strtol(text, NULL, 16);
}

static void child(void *unused)
{
	(void)unused;
	set("0x7f");
	wl_child_ready_wait();
	CHECK(get() == 0x7f, "coredump_filter is %lx, was 7f", get());
	_exit(0);
}

int main(void)
{
	wl_begin();
	pid_t pid = wl_child(child, NULL);
	set("0x11");
	wl_ready_wait();
	CHECK(get() == 0x11, "coredump_filter is %lx, was 11", get());
	wl_end(pid);
	wl_pass();
}
