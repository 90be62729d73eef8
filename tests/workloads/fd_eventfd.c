// SPDX-License-Identifier: Apache-2.0
/* eventfd: counter, flags, shared with a child. */
/* wl: */
#include "fd.h"
#include <sys/eventfd.h>

static int shared;

static void child(void *argument)
{
	(void)argument;
	wl_child_ready_wait();
	MUST(eventfd_write(shared, 30));
}

static void expect(int fd, eventfd_t value, const char *what)
{
	eventfd_t now = 0;
	CHECK(eventfd_read(fd, &now) == 0 && now == value, "%s: read %" PRIu64 ", expected %" PRIu64, what, now, value);
}

int main(void)
{
	wl_begin();
	int plain = MUST(eventfd(5, 0));
	int empty = MUST(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
	shared = MUST(eventfd(7, EFD_NONBLOCK));
	pid_t pid = wl_child(child, NULL);
	int fds[] = {plain, empty, shared};
	struct fd_facts was[3];
	for (int i = 0; i < 3; i++)
		was[i] = fd_look(fds[i]);
	wl_ready_wait();
	for (int i = 0; i < 3; i++)
		fd_check(&was[i], (const char *[]){"plain", "empty", "shared"}[i]);
	fd_expect_error(empty, EAGAIN, "empty");
	expect(plain, 5, "plain");
	wl_end(pid);
	expect(shared, 37, "shared");
	wl_pass();
}
