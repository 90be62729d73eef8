// SPDX-License-Identifier: Apache-2.0
/* How an epoll polls network devices (EPIOCSPARAMS, 6.9). */
/* wl: */
#include "fd.h"
#include <sys/epoll.h>

struct parameters {
	uint32_t usecs;
	uint16_t budget;
	uint8_t prefer, pad;
};
#define SET _IOW(0x8A, 1, struct parameters)
#define GET _IOR(0x8A, 2, struct parameters)

int main(void)
{
	struct parameters was = {50, 8, 1, 0}, now = {0};
	wl_begin();
	int epoll = MUST(epoll_create1(0));
	if (ioctl(epoll, SET, &was) == -1)
		wl_skip("EPIOCSPARAMS: %s", strerror(errno));
	wl_ready_wait();
	MUST(ioctl(epoll, GET, &now));
	CHECK(!memcmp(&now, &was, sizeof now), "polls for %u us, %u packets, %u", now.usecs, now.budget, now.prefer);
	wl_pass();
}
