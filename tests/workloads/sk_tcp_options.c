// SPDX-License-Identifier: Apache-2.0
/* Options of a listening TCP socket. */
/* wl: */
#include "sk.h"

static struct sk_option options[] = {
	SK_OPTION(SOL_SOCKET, SO_REUSEADDR, 1),
	SK_OPTION(SOL_SOCKET, SO_REUSEPORT, 1),
	SK_OPTION(SOL_SOCKET, SO_KEEPALIVE, 1),
	SK_OPTION(SOL_SOCKET, SO_SNDBUF, 100000),
	SK_OPTION(SOL_SOCKET, SO_RCVBUF, 120000),
	SK_OPTION(SOL_SOCKET, SO_PRIORITY, 4),
	SK_OPTION(SOL_SOCKET, SO_MARK, 9),
	SK_OPTION(SOL_SOCKET, SO_OOBINLINE, 1),
	SK_OPTION(SOL_SOCKET, SO_RCVLOWAT, 2),
	SK_OPTION(IPPROTO_TCP, TCP_NODELAY, 1),
	SK_OPTION(IPPROTO_TCP, TCP_KEEPIDLE, 33),
	SK_OPTION(IPPROTO_TCP, TCP_KEEPINTVL, 44),
	SK_OPTION(IPPROTO_TCP, TCP_KEEPCNT, 5),
	SK_OPTION(IPPROTO_IP, IP_TOS, 0x10),
	SK_OPTION(IPPROTO_IP, IP_TTL, 55),
	SK_OPTION(IPPROTO_IP, IP_FREEBIND, 1),
};
enum { count = sizeof options / sizeof *options };

int main(void)
{
	struct linger linger = {1, 9}, now = {0};
	struct timeval timeout = {4, 250000}, now_timeout;
	socklen_t length = sizeof now, timeout_length = sizeof now_timeout;
	wl_begin();
	int server = MUST(socket(AF_INET, SOCK_STREAM, 0)), usual = MUST(socket(AF_INET, SOCK_STREAM, 0));
	int usual_send = sk_get(usual, SOL_SOCKET, SO_SNDBUF), usual_receive = sk_get(usual, SOL_SOCKET, SO_RCVBUF);
	sk_set_options(server, options, count);
	MUST(setsockopt(server, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
	MUST(setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout));
	MUST(getsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &timeout, &timeout_length)); /* rounded to clock ticks */
	sk_bind_ip(server, "127.0.0.1", 0);
	sk_bind_ip(usual, "127.0.0.1", 0);
	MUST(listen(server, 5));
	MUST(listen(usual, 5));
	for (int i = 0; i < count; i++)
		options[i].before = sk_get(server, options[i].level, options[i].option);
	wl_ready_wait();
	sk_check_options(server, options, count, "server");
	MUST(getsockopt(server, SOL_SOCKET, SO_LINGER, &now, &length));
	CHECK(now.l_onoff == 1 && now.l_linger == 9, "linger is %d, %d", now.l_onoff, now.l_linger);
	MUST(getsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &now_timeout, &timeout_length));
	CHECK(!memcmp(&timeout, &now_timeout, sizeof timeout), "timeout is %ld.%06ld", (long)now_timeout.tv_sec,
	      (long)now_timeout.tv_usec);
	CHECK(sk_get(usual, SOL_SOCKET, SO_REUSEADDR) == 0 && sk_get(usual, SOL_SOCKET, SO_REUSEPORT) == 0, "reuse is set");
	CHECK(sk_get(usual, SOL_SOCKET, SO_KEEPALIVE) == 0 && sk_get(usual, IPPROTO_TCP, TCP_NODELAY) == 0, "an option is set");
	CHECK(sk_get(usual, SOL_SOCKET, SO_SNDBUF) == usual_send, "send buffer %d", sk_get(usual, SOL_SOCKET, SO_SNDBUF));
	CHECK(sk_get(usual, SOL_SOCKET, SO_RCVBUF) == usual_receive, "receive buffer %d", sk_get(usual, SOL_SOCKET, SO_RCVBUF));
	wl_pass();
}
