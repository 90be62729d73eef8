// SPDX-License-Identifier: Apache-2.0
/* Options of UDP sockets that are rarer: multicast, time stamps, received ancillary data, segmentation, v6's own. */
/* wl: */
#include "sk.h"

static struct sk_option options[] = {
	SK_OPTION(IPPROTO_IP, IP_MULTICAST_TTL, 3), SK_OPTION(IPPROTO_IP, IP_MULTICAST_LOOP, 0), SK_OPTION(IPPROTO_IP, IP_MULTICAST_ALL, 0),
	SK_OPTION(IPPROTO_IP, IP_RECVTTL, 1),	    SK_OPTION(IPPROTO_IP, IP_RECVTOS, 1),	 SK_OPTION(IPPROTO_IP, IP_RECVERR, 1),
	SK_OPTION(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO),
	SK_OPTION(IPPROTO_UDP, UDP_SEGMENT, 1000),  SK_OPTION(IPPROTO_UDP, UDP_GRO, 1),		 SK_OPTION(SOL_SOCKET, SO_TIMESTAMP, 1),
	SK_OPTION(SOL_SOCKET, SO_RXQ_OVFL, 1),	    SK_OPTION(SOL_SOCKET, SO_MAX_PACING_RATE, 100000),
	SK_OPTION(IPPROTO_IP, IP_RECVORIGDSTADDR, 1), SK_OPTION(IPPROTO_IP, IP_MINTTL, 3), SK_OPTION(IPPROTO_IP, IP_RECVOPTS, 1),
	SK_OPTION(IPPROTO_IP, IP_TRANSPARENT, 1),   SK_OPTION(IPPROTO_IP, IP_MULTICAST_IF, SK_NETWORK(0x7f000001)),
	SK_OPTION(IPPROTO_IP, IP_UNICAST_IF, SK_NETWORK(1)),
};
/* What excludes one another. */
static struct sk_option stamps[] = {SK_OPTION(SOL_SOCKET, SO_TIMESTAMPNS, 1), SK_OPTION(SOL_SOCKET, SO_TIMESTAMPING, 0x10)};
static struct sk_option options6[] = {
	SK_OPTION(IPPROTO_IPV6, IPV6_RECVPKTINFO, 1),	 SK_OPTION(IPPROTO_IPV6, IPV6_UNICAST_HOPS, 33),
	SK_OPTION(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 4), SK_OPTION(IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0),
	SK_OPTION(IPPROTO_IPV6, IPV6_TCLASS, 0x20),	 SK_OPTION(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1),
	SK_OPTION(IPPROTO_IPV6, IPV6_RECVTCLASS, 1),	 SK_OPTION(IPPROTO_IPV6, IPV6_RECVERR, 1),
	SK_OPTION(IPPROTO_IPV6, IPV6_MULTICAST_IF, 1),	 SK_OPTION(IPPROTO_IPV6, IPV6_UNICAST_IF, SK_NETWORK(1)),
	SK_OPTION(IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0),	 SK_OPTION(IPPROTO_IPV6, IPV6_DONTFRAG, 1),
	SK_OPTION(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0),	 SK_OPTION(IPPROTO_IPV6, IPV6_MINHOPCOUNT, 2),
	SK_OPTION(IPPROTO_IPV6, IPV6_RECVPATHMTU, 1),	 SK_OPTION(IPPROTO_UDP, UDP_NO_CHECK6_TX, 1),
	/* for what it exchanges with IPv4 */
	SK_OPTION(IPPROTO_IP, IP_TOS, 0x10),		 SK_OPTION(IPPROTO_IP, IP_TTL, 9),
	SK_OPTION(IPPROTO_IP, IP_RECVTOS, 1),		 SK_OPTION(IPPROTO_IP, IP_PKTINFO, 1),
};
enum {
	count = sizeof options / sizeof *options,
	count6 = sizeof options6 / sizeof *options6,
	stamped = sizeof stamps / sizeof *stamps
};

int main(void)
{
	const unsigned long rate = sizeof rate > 4 ? ~0UL / 5 : 12345;
	const struct { int clock; unsigned flags; } when = {CLOCK_MONOTONIC, 1};
	const unsigned char header[8] = {0, 0, 1, 4}; /* six bytes of padding */
	unsigned char got[8];
	socklen_t length = sizeof got;
	wl_begin();
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0)), six = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	sk_set_options(fd, options, count);
	sk_set_options(six, options6, count6);
	int last = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	sk_set_options(last, stamps, stamped);
	MUST(setsockopt(last, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate));
	MUST(setsockopt(last, SOL_SOCKET, SO_TXTIME, &when, sizeof when));
	MUST(setsockopt(six, IPPROTO_IPV6, IPV6_DSTOPTS, header, sizeof header));
	sk_bind_ip(fd, "127.0.0.1", 0);
	sk_bind_ip(six, "::1", 0);
	wl_ready_wait();
	sk_check_options(fd, options, count, "UDP");
	sk_check_options(six, options6, count6, "UDP over v6");
	sk_check_options(last, stamps, stamped, "stamped UDP");
	MUST(getsockopt(last, SOL_SOCKET, SO_MAX_PACING_RATE, got, &length));
	CHECK(length == sizeof rate && !memcmp(got, &rate, length), "another pacing rate");
	length = sizeof got;
	MUST(getsockopt(last, SOL_SOCKET, SO_TXTIME, got, &length));
	CHECK(length == sizeof when && !memcmp(got, &when, length), "other times of sending");
	length = sizeof got;
	MUST(getsockopt(six, IPPROTO_IPV6, IPV6_DSTOPTS, got, &length));
	CHECK(length == sizeof header && !memcmp(got, header, length), "another header of %u bytes", (unsigned)length);
	wl_pass();
}
