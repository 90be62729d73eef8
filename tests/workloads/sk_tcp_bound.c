// SPDX-License-Identifier: Apache-2.0
/* TCP sockets that are bound and do not listen, and fresh ones that are neither. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	int bound = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	int fresh = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), fresh6 = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	int port = sk_bind_ip(bound, "127.0.0.1", 0), port6 = sk_bind_ip(six, "::1", 0);
	sk_set(fresh, SOL_SOCKET, SO_KEEPALIVE, 1);
	sk_set(fresh6, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	struct fd_facts was = fd_look(bound), was2 = fd_look(fresh), was3 = fd_look(fresh6);
	wl_ready_wait();
	fd_check(&was, "bound");
	fd_check(&was2, "fresh");
	fd_check(&was3, "fresh v6");
	sk_same_ip(bound, false, "127.0.0.1", port, "bound");
	sk_same_ip(six, false, "::1", port6, "bound v6");
	sk_same_ip(fresh, false, "0.0.0.0", 0, "fresh");
	sk_same_ip(fresh6, false, "::", 0, "fresh v6");
	CHECK(sk_get(bound, SOL_SOCKET, SO_ACCEPTCONN) == 0, "bound listens");
	CHECK(sk_get(fresh, SOL_SOCKET, SO_KEEPALIVE) == 1, "keepalive is gone");
	CHECK(sk_get(fresh6, IPPROTO_IPV6, IPV6_V6ONLY) == 1, "v6 only is gone");
	MUST(fcntl(fresh, F_SETFL, 0));
	MUST(listen(bound, 3));
	sk_connect_ip(fresh, "127.0.0.1", port);
	close(MUST(accept(bound, NULL, NULL)));
	MUST(listen(six, 3));
	sk_connect_ip(fresh6, "::1", port6);
	close(MUST(accept(six, NULL, NULL)));
	wl_pass();
}
