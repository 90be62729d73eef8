// SPDX-License-Identifier: Apache-2.0
/* UNIX stream pairs that were shut down for reading, writing or both, with data that was queued before. */
/* wl: */
#include "sk.h"

int main(void)
{
	int reading[2], writing[2], both[2];
	wl_begin();
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, reading));
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, writing));
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, both));
	fd_put(writing[0], "last words", 10);
	fd_put(reading[1], "unread", 6);
	fd_put(reading[0], "answer", 6);
	MUST(shutdown(reading[0], SHUT_RD));
	MUST(shutdown(writing[0], SHUT_WR));
	MUST(shutdown(both[0], SHUT_RDWR));
	wl_ready_wait();
	CHECK(send(reading[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "peer of SHUT_RD can write");
	fd_expect_text(reading[0], "unread", "queued before SHUT_RD");
	fd_expect_end(reading[0], "SHUT_RD");
	fd_expect_text(reading[1], "answer", "SHUT_RD, other direction");
	fd_put(reading[0], "more", 4);
	fd_expect_text(reading[1], "more", "SHUT_RD, other direction");
	CHECK(send(writing[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "SHUT_WR can write");
	CHECK(fd_poll(writing[1]) & POLLRDHUP, "peer of SHUT_WR: poll gives %#x", fd_poll(writing[1]));
	fd_expect_text(writing[1], "last words", "queued before SHUT_WR");
	fd_expect_end(writing[1], "peer of SHUT_WR");
	fd_put(writing[1], "back", 4);
	fd_expect_text(writing[0], "back", "SHUT_WR, other direction");
	CHECK(send(both[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "SHUT_RDWR can write");
	CHECK(send(both[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "peer of SHUT_RDWR can write");
	fd_expect_end(both[0], "SHUT_RDWR");
	CHECK(fd_poll(both[1]) & POLLHUP, "peer of SHUT_RDWR: poll gives %#x", fd_poll(both[1]));
	wl_pass();
}
