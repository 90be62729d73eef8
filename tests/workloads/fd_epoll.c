// SPDX-License-Identifier: Apache-2.0
/* epoll: level and edge triggered, one-shot armed and spent, exclusive, data of 64 bits, ready and idle targets. */
/* wl: */
#include "fd.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { level, edge, armed, spent, idle, silent, exclusive, count };
static const uint32_t events[count] = {
	[level] = EPOLLIN,
	[edge] = EPOLLIN | EPOLLET | EPOLLRDHUP,
	[armed] = EPOLLIN | EPOLLONESHOT,
	[spent] = EPOLLIN | EPOLLONESHOT,
	[idle] = EPOLLIN | EPOLLPRI,
	[silent] = 0,
	[exclusive] = EPOLLIN | EPOLLEXCLUSIVE,
};

static uint64_t data(int i) { return 0xfedcba9876543210u + (uint64_t)i; }

/* The set of targets that epoll_wait reports now. */
static unsigned ready(int epoll)
{
	struct epoll_event found[20];
	unsigned set = 0;
	int n = MUST(epoll_wait(epoll, found, 20, 0));
	for (int i = 0; i < n; i++) {
		uint64_t which = found[i].data.u64 - data(0);
		CHECK(which < count, "unknown data %#" PRIx64, found[i].data.u64);
		CHECK(found[i].events == EPOLLIN, "target %d: events %#x", (int)which, found[i].events);
		set |= 1u << which;
	}
	return set;
}

int main(void)
{
	int fds[count];
	wl_begin();
	int epoll = MUST(epoll_create1(EPOLL_CLOEXEC));
	for (int i = 0; i < count; i++) {
		fds[i] = MUST(eventfd(i == spent, EFD_NONBLOCK));
		MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &(struct epoll_event){events[i], {.u64 = data(i)}}));
	}
	CHECK(ready(epoll) == 1u << spent, "one-shot did not come");
	MUST(eventfd_write(fds[level], 1));
	struct fd_facts was = fd_look(epoll);
	wl_ready_wait();
	fd_check(&was, "epoll");
	unsigned now = ready(epoll);
	CHECK(now == 1u << level, "ready at first: %#x", now);
	CHECK(ready(epoll) == 1u << level, "level triggered only once");
	MUST(eventfd_read(fds[level], &(eventfd_t){0}));
	for (int i = 0; i < count; i++)
		MUST(eventfd_write(fds[i], 1));
	now = ready(epoll);
	CHECK(now == (1u << level | 1u << edge | 1u << armed | 1u << idle | 1u << exclusive), "ready: %#x", now);
	now = ready(epoll);
	CHECK(now == (1u << level | 1u << idle | 1u << exclusive), "still ready: %#x", now);
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[spent], &(struct epoll_event){0}) == -1 && errno == EEXIST, "not registered");
	MUST(epoll_ctl(epoll, EPOLL_CTL_MOD, fds[spent], &(struct epoll_event){EPOLLIN, {.u64 = data(spent)}}));
	CHECK(ready(epoll) & 1u << spent, "spent one-shot cannot be armed again");
	for (int i = 0; i < count; i++)
		MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, fds[i], NULL));
	wl_pass();
}
