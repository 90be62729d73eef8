// SPDX-License-Identifier: Apache-2.0
/* One description registered under two of its numbers, and an epoll descriptor that is itself shared by dup and fork. */
/* wl: */
#include "fd.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int epoll, one, two;

static int ready(void)
{
	struct epoll_event found[8];
	int n = MUST(epoll_wait(epoll, found, 8, 0)), sum = 0;
	for (int i = 0; i < n; i++)
		sum += (int)found[i].data.u32;
	return sum;
}

static void child(void *argument)
{
	(void)argument;
	wl_child_ready_wait();
	CHECK(ready() == 110, "child: ready sum %d", ready());
	/* change the parent's registrations through the shared description */
	MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, one, NULL));
	CHECK(ready() == 100, "child: after removal %d", ready());
}

int main(void)
{
	wl_begin();
	epoll = MUST(epoll_create1(0));
	one = MUST(eventfd(0, 0));
	two = MUST(dup(one));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, one, &(struct epoll_event){EPOLLIN, {.u32 = 10}}));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, two, &(struct epoll_event){EPOLLIN, {.u32 = 100}}));
	int twin = MUST(dup(epoll));
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	CHECK(fd_same(epoll, twin) && fd_one_description(getpid(), epoll, pid, epoll), "epoll is not shared any more");
	CHECK(ready() == 0, "ready sum %d", ready());
	MUST(eventfd_write(one, 1));
	CHECK(ready() == 110, "ready sum %d", ready());
	wl_end(pid);
	CHECK(ready() == 100, "the child's change is not seen: %d", ready());
	wl_pass();
}
