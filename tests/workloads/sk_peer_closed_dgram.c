// SPDX-License-Identifier: Apache-2.0
/* UNIX datagram sockets whose peer was closed: they learn it once, by ECONNREFUSED, and are unconnected from then on. */
/* wl: */
#include "sk.h"

int main(void)
{
	int pair[2];
	wl_begin();
	MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair));
	int server = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), client = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	sk_bind(server, "server");
	sk_connect(client, "server");
	close(pair[1]);
	close(server);
	wl_ready_wait();
	sk_names(client, NULL, "server", "client");
	sk_names(pair[0], NULL, NULL, "pair");
	CHECK(send(pair[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "pair: %s", strerror(errno));
	CHECK(send(pair[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == ENOTCONN, "pair, second time: %s", strerror(errno));
	CHECK(send(client, "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "client: %s", strerror(errno));
	wl_pass();
}
