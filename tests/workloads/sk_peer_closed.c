// SPDX-License-Identifier: Apache-2.0
/* UNIX pairs whose other end is closed: with data left to read, and without. */
/* wl: */
#include "sk.h"

int main(void)
{
	int stream[2], packets[2], datagrams[2], empty[2];
	wl_begin();
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, stream));
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, packets));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagrams));
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, empty));
	fd_put(stream[1], "left over", 9);
	fd_put(packets[1], "left", 4);
	fd_put(packets[1], "over", 4);
	fd_put(datagrams[1], "datagram", 8);
	close(stream[1]), close(packets[1]), close(datagrams[1]), close(empty[1]);
	wl_ready_wait();
	CHECK(fd_poll(stream[0]) & POLLHUP, "stream: poll gives %#x", fd_poll(stream[0]));
	fd_expect_text(stream[0], "left over", "stream");
	fd_expect_end(stream[0], "stream");
	CHECK(send(stream[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "stream: %s", strerror(errno));
	fd_expect_text(packets[0], "left", "packets");
	fd_expect_text(packets[0], "over", "packets");
	fd_expect_end(packets[0], "packets");
	fd_expect_text(datagrams[0], "datagram", "datagrams");
	fd_expect_error(datagrams[0], EAGAIN, "datagrams");
	fd_expect_end(empty[0], "empty");
	wl_pass();
}
