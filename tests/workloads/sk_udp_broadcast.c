// SPDX-License-Identifier: Apache-2.0
/* A UDP socket whose peer is everybody: it may have it for SO_BROADCAST alone. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	int port = sk_bind_ip(fd, "127.0.0.1", 0);
	sk_set(fd, SOL_SOCKET, SO_BROADCAST, 1);
	sk_connect_ip(fd, "127.255.255.255", 4711);
	wl_ready_wait();
	sk_same_ip(fd, false, "127.0.0.1", port, "broadcasting socket");
	sk_same_ip(fd, true, "127.255.255.255", 4711, "broadcasting socket");
	CHECK(sk_get(fd, SOL_SOCKET, SO_BROADCAST) == 1, "SO_BROADCAST is off");
	wl_pass();
}
