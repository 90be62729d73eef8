// SPDX-License-Identifier: Apache-2.0
/* Options of UNIX sockets that are rarer: linger, low-water mark, time stamps, keepalive, inline urgent data. */
/* wl: */
#include "sk.h"
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif

static struct sk_option options[] = {
	SK_OPTION(SOL_SOCKET, SO_REUSEADDR, 1), SK_OPTION(SOL_SOCKET, SO_RCVLOWAT, 3),	SK_OPTION(SOL_SOCKET, SO_TIMESTAMP, 1),
	SK_OPTION(SOL_SOCKET, SO_OOBINLINE, 1), SK_OPTION(SOL_SOCKET, SO_PASSPIDFD, 1), SK_OPTION(SOL_SOCKET, SO_KEEPALIVE, 1),
};
enum { count = sizeof options / sizeof *options };

int main(void)
{
	int pair[2];
	struct linger linger = {1, 7}, now = {0};
	socklen_t length = sizeof now;
	wl_begin();
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	if (setsockopt(pair[0], SOL_SOCKET, SO_PASSPIDFD, &(int){1}, sizeof(int)) == -1)
		wl_skip("the kernel knows no SO_PASSPIDFD (6.5)");
	sk_set_options(pair[0], options, count);
	MUST(setsockopt(pair[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
	wl_ready_wait();
	sk_check_options(pair[0], options, count, "pair");
	MUST(getsockopt(pair[0], SOL_SOCKET, SO_LINGER, &now, &length));
	CHECK(now.l_onoff == 1 && now.l_linger == 7, "linger is %d, %d", now.l_onoff, now.l_linger);
	wl_pass();
}
