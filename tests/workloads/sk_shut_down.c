// SPDX-License-Identifier: Apache-2.0
/* shutdown(2) of UDP sockets, and of TCP sockets that are not connected. */
/* wl: */
#include "sk.h"

enum { count = 6 };

/* What poll(2) and sending tell. */
static void look(const int *fds, short *events, int *sends)
{
	for (int i = 0; i < count; i++) {
		struct pollfd poller = {.fd = fds[i], .events = POLLIN | POLLOUT | POLLRDHUP};
		MUST(poll(&poller, 1, 0));
		events[i] = poller.revents;
		sends[i] = i < 3 && send(fds[i], "x", 1, MSG_NOSIGNAL) == -1 ? errno : 0;
	}
}

int main(void)
{
	int fds[count], sends[count], sends_now[count], wrong = 0;
	short events[count], now[count];
	struct sockaddr_in address;
	socklen_t length = sizeof address;
	wl_begin();
	int server = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	sk_bind_ip(server, "127.0.0.1", 0);
	MUST(getsockname(server, (struct sockaddr *)&address, &length));
	for (int i = 0; i < count; i++) {
		fds[i] = MUST(socket(AF_INET, i < 3 ? SOCK_DGRAM : SOCK_STREAM, 0));
		if (i < 3)
			MUST(connect(fds[i], (struct sockaddr *)&address, sizeof address));
		shutdown(fds[i], i % 3);
	}
	look(fds, events, sends);
	for (char byte; recv(server, &byte, 1, MSG_DONTWAIT) == 1;)
		;
	CHECK(sends[1] == EPIPE, "what was shut down sends");
	wl_ready_wait();
	look(fds, now, sends_now);
	for (int i = 0; i < count; i++)
		wrong += now[i] != events[i] || sends_now[i] != sends[i];
	CHECK(!wrong, "shutdown is forgotten");
	wl_pass();
}
