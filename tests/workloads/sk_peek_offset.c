// SPDX-License-Identifier: Apache-2.0
/* SO_PEEK_OFF of UNIX sockets, which a tool that peeks at their queues must leave as it was. */
/* wl: */
#include "sk.h"

int main(void)
{
	int set[2], unset[2];
	char buffer[20];
	wl_begin();
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, set));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, unset));
	sk_set(set[0], SOL_SOCKET, SO_PEEK_OFF, 0);
	fd_put(set[1], "0123456789", 10);
	fd_put(unset[1], "0123456789", 10);
	CHECK(recv(set[0], buffer, 4, MSG_PEEK) == 4, "peek: %s", strerror(errno));
	CHECK(sk_get(set[0], SOL_SOCKET, SO_PEEK_OFF) == 4, "offset %d", sk_get(set[0], SOL_SOCKET, SO_PEEK_OFF));
	wl_ready_wait();
	CHECK(sk_get(set[0], SOL_SOCKET, SO_PEEK_OFF) == 4, "peek offset is %d, was 4", sk_get(set[0], SOL_SOCKET, SO_PEEK_OFF));
	CHECK(sk_get(unset[0], SOL_SOCKET, SO_PEEK_OFF) == -1, "peek offset is %d, was -1",
	      sk_get(unset[0], SOL_SOCKET, SO_PEEK_OFF));
	CHECK(recv(set[0], buffer, 20, MSG_PEEK) == 6 && !memcmp(buffer, "456789", 6), "peeks from another place");
	CHECK(recv(unset[0], buffer, 4, MSG_PEEK) == 4 && recv(unset[0], buffer, 4, MSG_PEEK) == 4, "peek: %s", strerror(errno));
	CHECK(!memcmp(buffer, "0123", 4), "peeking moved");
	fd_expect_text(set[0], "0123456789", "all data");
	fd_expect_text(unset[0], "0123456789", "all data");
	wl_pass();
}
