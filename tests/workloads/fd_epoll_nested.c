// SPDX-License-Identifier: Apache-2.0
/* epoll inside epoll, three deep, an empty one, and one target in two of them. */
/* wl: */
#include "fd.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static void add(int epoll, int fd, uint64_t data)
{
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.u64 = data}}));
}

static void expect(int epoll, uint64_t data, const char *what)
{
	struct epoll_event found[4];
	int n = MUST(epoll_wait(epoll, found, 4, 0));
	if (!data)
		CHECK(n == 0, "%s: %d events, expected none", what, n);
	else
		CHECK(n == 1 && found[0].data.u64 == data, "%s: %d events, data %" PRIu64, what, n, n ? found[0].data.u64 : 0);
}

int main(void)
{
	int pipes[2];
	wl_begin();
	/* the outermost gets the lowest number, so the order of numbers is not the order in which they must be made */
	int outer = MUST(epoll_create1(0)), middle = MUST(epoll_create1(0)), inner = MUST(epoll_create1(0));
	int empty = MUST(epoll_create1(0)), other = MUST(epoll_create1(0));
	MUST(pipe(pipes));
	int event = MUST(eventfd(0, 0));
	add(inner, pipes[0], 1);
	add(middle, inner, 2);
	add(outer, middle, 3);
	add(other, pipes[0], 4);
	add(other, empty, 5);
	add(middle, event, 6);
	wl_ready_wait();
	expect(outer, 0, "outer");
	fd_put(pipes[1], "x", 1);
	expect(outer, 3, "outer");
	expect(middle, 2, "middle");
	expect(inner, 1, "inner");
	expect(other, 4, "other");
	MUST(read(pipes[0], (char[1]){0}, 1));
	expect(outer, 0, "outer again");
	MUST(eventfd_write(event, 1));
	expect(outer, 3, "outer by its second way");
	expect(middle, 6, "middle");
	CHECK(epoll_ctl(inner, EPOLL_CTL_ADD, outer, &(struct epoll_event){0}) == -1 && errno == ELOOP, "no loop seen");
	wl_pass();
}
