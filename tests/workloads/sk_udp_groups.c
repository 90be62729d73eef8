// SPDX-License-Identifier: Apache-2.0
/* Multicast groups: of IPv4, of IPv6, of IPv4 by a socket of IPv6, what no socket has joined by itself, and none. */
/* wl: */
#include "sk.h"

enum { sockets = 5 };
static const struct {
	int family;
	const char *group;
} cases[sockets] = {
	{AF_INET, "239.1.2.3"}, {AF_INET6, "ff12::1234"}, {AF_INET6, "239.1.2.4"}, {AF_INET, "224.0.0.1"}, {AF_INET, "239.1.2.5"},
};

static int join(int fd, const char *text)
{
	struct group_req request = {.gr_interface = 1};
	struct sockaddr_in *four = (struct sockaddr_in *)&request.gr_group;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&request.gr_group;
	if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		return setsockopt(fd, IPPROTO_IP, MCAST_JOIN_GROUP, &request, sizeof request);
	}
	CHECK(inet_pton(AF_INET6, text, &six->sin6_addr) == 1, "no address: %s", text);
	six->sin6_family = AF_INET6;
	return setsockopt(fd, IPPROTO_IPV6, MCAST_JOIN_GROUP, &request, sizeof request);
}

int main(void)
{
	int fds[sockets];
	wl_begin();
	for (int i = 0; i < sockets; i++) {
		fds[i] = MUST(socket(cases[i].family, SOCK_DGRAM, 0));
		if (i < sockets - 1)
			MUST(join(fds[i], cases[i].group));
	}
	wl_ready_wait();
	for (int i = 0; i < sockets; i++) {
		bool joined = join(fds[i], cases[i].group) == -1 && errno == EADDRINUSE;
		CHECK(joined == (i < sockets - 1), "%s: in the group: %d", cases[i].group, joined);
	}
	wl_pass();
}
