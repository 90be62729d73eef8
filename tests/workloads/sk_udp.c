// SPDX-License-Identifier: Apache-2.0
/* UDP sockets: fresh, bound, connected, of both families, shared with a child. */
/* wl: */
#include "sk.h"

static int bound;

static void child(void *argument)
{
	(void)argument;
	wl_child_ready_wait();
	fd_expect_text(bound, "for the child", "child");
}

int main(void)
{
	wl_begin();
	bound = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	int fresh = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)), connected = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	int six = MUST(socket(AF_INET6, SOCK_DGRAM, 0)), six_only = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	int four_same = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	int port = sk_bind_ip(bound, "127.0.0.1", 0), port6 = sk_bind_ip(six, "::1", 0);
	int own = sk_bind_ip(connected, "127.0.0.1", 0);
	sk_connect_ip(connected, "127.0.0.1", port);
	int wild = sk_bind_ip(four_same, "0.0.0.0", 0);
	sk_set(six_only, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	sk_bind_ip(six_only, "::", wild);
	pid_t pid = wl_child(child, NULL);
	struct fd_facts was = fd_look(bound), was2 = fd_look(fresh);
	wl_ready_wait();
	fd_check(&was, "bound");
	fd_check(&was2, "fresh");
	sk_same_ip(bound, false, "127.0.0.1", port, "bound");
	sk_same_ip(fresh, false, "0.0.0.0", 0, "fresh");
	sk_same_ip(connected, false, "127.0.0.1", own, "connected");
	sk_same_ip(connected, true, "127.0.0.1", port, "connected");
	sk_same_ip(six, false, "::1", port6, "v6");
	sk_same_ip(six_only, false, "::", wild, "v6 only");
	CHECK(sk_get(six_only, IPPROTO_IPV6, IPV6_V6ONLY) == 1, "v6 only is gone");
	CHECK(sk_get(bound, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_UDP, "no UDP socket");
	socklen_t length;
	struct sockaddr_storage address = sk_ip("127.0.0.1", own, &length);
	MUST(sendto(fresh, "stranger", 8, 0, (struct sockaddr *)&address, length)); /* dropped: not from its peer */
	MUST(sendto(bound, "peer", 4, 0, (struct sockaddr *)&address, length));
	fd_expect_text(connected, "peer", "connected");
	fd_put(connected, "for the child", 13);
	wl_end(pid);
	address = sk_ip("::1", port6, &length);
	MUST(sendto(six_only, "six", 3, 0, (struct sockaddr *)&address, length));
	fd_expect_text(six, "six", "v6");
	wl_pass();
}
