// SPDX-License-Identifier: Apache-2.0
/* epoll targets that were registered under another number than they have now, one of them by now another file's. */
/* wl: */
#include "fd.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static int epoll;

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
	int pair[2];
	wl_begin();
	epoll = MUST(epoll_create1(0));
	int gone = MUST(eventfd(0, 0));
	add(gone, 1);
	int moved = MUST(dup2(gone, 90)); /* lives on under 90 */
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	add(pair[0], 2);
	int moved_pair = MUST(dup2(pair[0], 91));
	close(gone);
	int reused = pair[0];
	CHECK(dup2(MUST(eventfd(0, 0)), reused) == reused, "cannot take the number again");
	add(reused, 3); /* one number, two registrations */
	close(gone);
	wl_ready_wait();
	CHECK(ready() == 0, "ready: %#x", ready());
	MUST(eventfd_write(moved, 1));
	CHECK(ready() == 1u << 1, "after the duplicate: %#x", ready());
	fd_put(pair[1], "x", 1);
	CHECK(ready() == (1u << 1 | 1u << 2), "after the socket: %#x", ready());
	MUST(eventfd_write(reused, 1));
	CHECK(ready() == (1u << 1 | 1u << 2 | 1u << 3), "after the reused number: %#x", ready());
	close(moved);
	close(moved_pair);
	CHECK(ready() == 1u << 3, "closed for good: %#x", ready());
	wl_pass();
}
