// SPDX-License-Identifier: Apache-2.0
/* eventfds made with EFD_SEMAPHORE: a read takes 1. */
/* wl: */
#include "fd.h"
#include <sys/eventfd.h>

static void expect(int fd, eventfd_t value, const char *what)
{
	eventfd_t now = 0;
	CHECK(eventfd_read(fd, &now) == 0 && now == value, "%s: read %" PRIu64 ", expected %" PRIu64, what, now, value);
}

int main(void)
{
	wl_begin();
	int semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
	int empty = MUST(eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
	struct fd_facts was = fd_look(semaphore), was_empty = fd_look(empty);
	wl_ready_wait();
	fd_check(&was, "semaphore");
	fd_check(&was_empty, "empty semaphore");
	for (int i = 0; i < 3; i++)
		expect(semaphore, 1, "semaphore");
	fd_expect_error(semaphore, EAGAIN, "semaphore");
	fd_expect_error(empty, EAGAIN, "empty semaphore");
	MUST(eventfd_write(empty, 2));
	expect(empty, 1, "empty semaphore");
	wl_pass();
}
