// SPDX-License-Identifier: Apache-2.0
/* epoll targets whose number is closed and means nothing, while the description lives on in a child. */
/* wl: */
#include "fd.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int epoll, child_end;

static void child(void *argument)
{
	(void)argument;
	wl_child_ready_wait(); /* holds every descriptor that the parent closes */
	MUST(eventfd_write(child_end, 1));
	wl_wait();
}

static unsigned ready(void)
{
	struct epoll_event found[8];
	unsigned set = 0;
	int n = MUST(epoll_wait(epoll, found, 8, 0));
	for (int i = 0; i < n; i++)
		set |= 1u << found[i].data.u32;
	return set;
}

static void add(int fd, uint32_t which) { MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.u32 = which}})); }

int main(void)
{
	wl_begin();
	epoll = MUST(epoll_create1(0));
	int kept = MUST(eventfd(0, 0));
	add(kept, 1);
	child_end = MUST(eventfd(0, 0));
	add(child_end, 2);
	pid_t pid = wl_child(child, NULL);
	close(child_end);
	wl_ready_wait();
	CHECK(ready() == 0, "ready: %#x", ready());
	MUST(kill(pid, SIGTERM)); /* it writes and holds on */
	struct epoll_event found;
	CHECK(epoll_wait(epoll, &found, 1, 5000) == 1 && found.data.u32 == 2, "the child's writing is not seen");
	MUST(eventfd_write(kept, 1));
	CHECK(ready() == (1u << 1 | 1u << 2), "ready: %#x", ready());
	wl_end(pid); /* its end closes the description for good, the registration goes with it */
	CHECK(ready() == 1u << 1, "after the child's end: %#x", ready());
	wl_pass();
}
