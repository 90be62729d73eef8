// SPDX-License-Identifier: Apache-2.0
/* Options of a listening TCP socket that are rarer: deferred accept, fast open, user timeout, congestion control. */
/* wl: */
#include "sk.h"

static struct sk_option options[] = {
	SK_OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT, 5),	SK_OPTION(IPPROTO_TCP, TCP_FASTOPEN, 16),
	SK_OPTION(IPPROTO_TCP, TCP_USER_TIMEOUT, 7000), SK_OPTION(IPPROTO_TCP, TCP_SYNCNT, 3),
	SK_OPTION(IPPROTO_TCP, TCP_MAXSEG, 1200),	SK_OPTION(IPPROTO_TCP, TCP_WINDOW_CLAMP, 40000),
	SK_OPTION(IPPROTO_TCP, TCP_LINGER2, 20),	SK_OPTION(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 9000),
	SK_OPTION(SOL_SOCKET, SO_INCOMING_CPU, 0),	SK_OPTION(SOL_SOCKET, SO_BUSY_POLL, 0),
	SK_OPTION(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT),
	SK_OPTION(IPPROTO_IP, IP_RECVERR, 1),		SK_OPTION(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1),
	SK_OPTION(SOL_SOCKET, SO_ZEROCOPY, 1),		SK_OPTION(SOL_SOCKET, SO_MAX_PACING_RATE, 100000),
	SK_OPTION(IPPROTO_TCP, TCP_SAVE_SYN, 1),	SK_OPTION(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1),
	SK_OPTION(IPPROTO_TCP, TCP_INQ, 1),		SK_OPTION(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1),
	SK_OPTION(IPPROTO_IP, IP_TRANSPARENT, 1),	SK_OPTION(IPPROTO_IP, IP_MINTTL, 3),
};
static const char key[] = "0123456789abcdef";
enum { count = sizeof options / sizeof *options };

int main(void)
{
	char now[20] = "";
	socklen_t length = sizeof now;
	wl_begin();
	int server = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_set_options(server, options, count);
	MUST(setsockopt(server, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	MUST(setsockopt(server, IPPROTO_TCP, TCP_FASTOPEN_KEY, key, 16));
	sk_set(server, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1); /* which cannot be set once it listens */
	sk_bind_ip(server, "127.0.0.1", 0);
	MUST(listen(server, 5));
	for (int i = 0; i < count; i++)
		options[i].before = sk_get(server, options[i].level, options[i].option);
	wl_ready_wait();
	sk_check_options(server, options, count, "server");
	MUST(getsockopt(server, IPPROTO_TCP, TCP_CONGESTION, now, &length));
	CHECK(!strcmp(now, "reno"), "congestion control is %s", now);
	CHECK(sk_get(server, IPPROTO_TCP, TCP_FASTOPEN_CONNECT) == 1, "fast open on connect is off");
	length = sizeof now;
	MUST(getsockopt(server, IPPROTO_TCP, TCP_FASTOPEN_KEY, now, &length));
	CHECK(length == 16 && !memcmp(now, key, 16), "another key of fast open, of %u bytes", (unsigned)length);
	wl_pass();
}
