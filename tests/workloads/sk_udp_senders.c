// SPDX-License-Identifier: Apache-2.0
/* A multicast group of which a socket hears one sender only. */
/* wl: refused=it_hears_chosen_senders_only_of_multicast_group_239.1.2.3 */
#include "sk.h"

int main(void)
{
	wl_begin();
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	struct ip_mreq_source request = {
		.imr_multiaddr.s_addr = inet_addr("239.1.2.3"),
		.imr_interface.s_addr = htonl(INADDR_LOOPBACK),
		.imr_sourceaddr.s_addr = inet_addr("192.0.2.1"),
	};
	MUST(setsockopt(fd, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &request, sizeof request));
	wl_ready_wait();
	CHECK(setsockopt(fd, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &request, sizeof request) == -1, "it had left the group");
	wl_pass();
}
