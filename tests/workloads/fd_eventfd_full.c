// SPDX-License-Identifier: Apache-2.0
/* eventfds with large counters: at the maximum, where a write would block, and beyond 32 bits as a semaphore. */
/* wl: */
#include "fd.h"
#include <sys/eventfd.h>

int main(void)
{
	eventfd_t now = 0;
	wl_begin();
	int full = MUST(eventfd(0, EFD_NONBLOCK));
	int semaphore = MUST(eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE));
	MUST(eventfd_write(full, 0xfffffffffffffffe));
	MUST(eventfd_write(semaphore, 0xffffffffffffff00));
	wl_ready_wait();
	CHECK(eventfd_write(full, 1) == -1 && errno == EAGAIN, "full is not full");
	MUST(eventfd_write(semaphore, 0xfe));
	CHECK(eventfd_write(semaphore, 1) == -1 && errno == EAGAIN, "the semaphore's counter was lower");
	CHECK(eventfd_read(full, &now) == 0 && now == 0xfffffffffffffffe, "full: read %" PRIu64, now);
	CHECK(eventfd_read(semaphore, &now) == 0 && now == 1, "semaphore: read %" PRIu64, now);
	wl_pass();
}
