// SPDX-License-Identifier: Apache-2.0
/* A master whose slave nobody has opened yet: reading waits, and is no error, until somebody has opened and closed it. */
/* wl: */
#include "tty.h"

int main(void)
{
	char byte;
	wl_begin();
	int unlocked = 0, masters[2];
	for (int i = 0; i < 2; i++) {
		masters[i] = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK));
		if (i)
			MUST(ioctl(masters[i], TIOCSPTLCK, &unlocked));
	}
	wl_ready_wait();
	for (int i = 0; i < 2; i++) {
		struct pollfd poller = {.fd = masters[i], .events = POLLIN};
		CHECK(read(masters[i], &byte, 1) == -1 && errno == EAGAIN, "master %d: read: %s", i, strerror(errno));
		CHECK(poll(&poller, 1, 0) == 0, "master %d: events %#x", i, poller.revents);
	}
	wl_pass();
}
