// SPDX-License-Identifier: Apache-2.0
/* Listening TCP sockets over IPv6: one for v6 only beside a v4 socket on the same port, one for both. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	int four = MUST(socket(AF_INET, SOCK_STREAM, 0)), both = MUST(socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0));
	int six = socket(AF_INET6, SOCK_STREAM, 0);
	if (six == -1)
		wl_skip("no IPv6");
	int port = sk_bind_ip(four, "127.0.0.1", 0);
	sk_set(six, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	sk_bind_ip(six, "::", port);
	sk_set(both, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	int both_port = sk_bind_ip(both, "::", 0);
	MUST(listen(four, 5));
	MUST(listen(six, 6));
	MUST(listen(both, 7));
	wl_ready_wait();
	sk_same_ip(four, false, "127.0.0.1", port, "v4");
	sk_same_ip(six, false, "::", port, "v6 only");
	sk_same_ip(both, false, "::", both_port, "both");
	CHECK(sk_get(six, IPPROTO_IPV6, IPV6_V6ONLY) == 1, "not v6 only any more");
	CHECK(sk_get(both, IPPROTO_IPV6, IPV6_V6ONLY) == 0, "v6 only now");
	int client = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	sk_connect_ip(client, "::1", port);
	close(MUST(accept(six, NULL, NULL)));
	client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_connect_ip(client, "127.0.0.1", port);
	close(MUST(accept(four, NULL, NULL)));
	client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_connect_ip(client, "127.0.0.1", both_port);
	close(MUST(accept(both, NULL, NULL)));
	wl_pass();
}
