// SPDX-License-Identifier: Apache-2.0
/* A datagram that is not complete yet: the kernel holds it back (MSG_MORE). */
/* wl: refused=it_holds_data_that_it_has_not_sent_yet */
#include "sk.h"

int main(void)
{
	char got[8];
	wl_begin();
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	/* QEMU 7.2 gets the checksum of two parts wrong for s390x kernels of 6.8 and newer (VCKSM). */
	MUST(setsockopt(fd, SOL_SOCKET, SO_NO_CHECK, &(int){1}, sizeof(int)));
	sk_bind_ip(fd, "127.0.0.1", 0);
	struct sockaddr_in own;
	socklen_t length = sizeof own;
	MUST(getsockname(fd, (struct sockaddr *)&own, &length));
	MUST(connect(fd, (struct sockaddr *)&own, sizeof own));
	MUST(send(fd, "half", 4, MSG_MORE));
	wl_ready_wait();
	MUST(send(fd, "more", 4, 0));
	CHECK(recv(fd, got, sizeof got, 0) == 8 && !memcmp(got, "halfmore", 8), "another datagram came");
	wl_pass();
}
