// SPDX-License-Identifier: Apache-2.0
/* Sockets of a transparent proxy: bound to addresses that are not this machine's (IP_TRANSPARENT). */
/* wl: */
#include "sk.h"

static void check(int fd, const struct sockaddr_in *expected, const char *what)
{
	struct sockaddr_in now;
	socklen_t length = sizeof now;
	MUST(getsockname(fd, (struct sockaddr *)&now, &length));
	CHECK(now.sin_port == expected->sin_port && now.sin_addr.s_addr == expected->sin_addr.s_addr, "%s has another address", what);
	CHECK(sk_get(fd, IPPROTO_IP, IP_TRANSPARENT) == 1, "%s is not transparent", what);
}

int main(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(4711), .sin_addr.s_addr = inet_addr("192.0.2.7")};
	wl_begin();
	int udp = MUST(socket(AF_INET, SOCK_DGRAM, 0)), tcp = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_set(udp, IPPROTO_IP, IP_TRANSPARENT, 1);
	sk_set(tcp, IPPROTO_IP, IP_TRANSPARENT, 1);
	MUST(bind(udp, (struct sockaddr *)&address, sizeof address));
	MUST(bind(tcp, (struct sockaddr *)&address, sizeof address));
	MUST(listen(tcp, 5));
	wl_ready_wait();
	check(udp, &address, "the UDP socket");
	check(tcp, &address, "the TCP socket");
	CHECK(sk_get(tcp, SOL_SOCKET, SO_ACCEPTCONN) == 1, "the TCP socket does not listen");
	wl_pass();
}
