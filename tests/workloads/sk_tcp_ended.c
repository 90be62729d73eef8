// SPDX-License-Identifier: Apache-2.0
/* A server's connections that have ended, reset or in order, and a failed attempt at one: getsockname(2) still tells
 * their port, which is the listener's, or nobody's. */
/* wl: */
#include "sk.h"

static struct sockaddr_in address;
static socklen_t length = sizeof address;

static int accepted(int listener, bool reset)
{
	int client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(client, (struct sockaddr *)&address, sizeof address));
	int server = MUST(accept(listener, NULL, NULL));
	if (reset) {
		struct linger now = {.l_onoff = 1};
		MUST(setsockopt(client, SOL_SOCKET, SO_LINGER, &now, sizeof now));
	} else {
		MUST(shutdown(client, SHUT_WR));
		MUST(shutdown(server, SHUT_WR));
	}
	MUST(close(client));
	return server;
}

/* The error that waits is heard. */
static short heard(int fd)
{
	struct pollfd poller = {.fd = fd, .events = POLLIN | POLLRDHUP};
	int error;
	socklen_t size = sizeof error;
	MUST(poll(&poller, 1, 5000));
	MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size));
	MUST(poll(&poller, 1, 0));
	return poller.revents;
}

int main(void)
{
	wl_begin();
	int early = MUST(dup(0)); /* a lower number than the listener's: what is made in this order meets all sides */
	int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_bind_ip(listener, "127.0.0.1", 0);
	MUST(getsockname(listener, (struct sockaddr *)&address, &length));
	MUST(listen(listener, 8));
	int done[3] = {accepted(listener, true), accepted(listener, false), accepted(listener, true)};
	MUST(dup2(done[2], early));
	MUST(close(done[2]));
	done[2] = early;
	int attempt = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	struct sockaddr_in nobody = address;
	int closed = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_bind_ip(closed, "127.0.0.1", 0);
	MUST(getsockname(closed, (struct sockaddr *)&nobody, &length));
	CHECK(connect(attempt, (struct sockaddr *)&nobody, sizeof nobody) == -1, "somebody listens");
	if (!(heard(attempt) & POLLHUP)) /* QEMU 7.2, s390x, Linux 6.8 and newer: a checksum that the kernel counts is wrong */
		wl_skip("the refusal of a connection does not arrive on this machine");
	MUST(close(closed));
	short events[3];
	for (int i = 0; i < 3; i++)
		events[i] = heard(done[i]);
	wl_ready_wait();
	for (int i = 0; i < 3; i++) {
		char byte;
		ssize_t got = recv(done[i], &byte, 1, MSG_DONTWAIT);
		EXPECT(got == 0, "an ended connection: %zd, %s", got, strerror(errno));
		short now = heard(done[i]);
		EXPECT(now == events[i], "an ended connection has events %#x, had %#x", now, events[i]);
	}
	for (int tries = 0; tries < 3; tries++) /* the first may hear of the failed attempt (ECONNABORTED) */
		if (connect(attempt, (struct sockaddr *)&address, sizeof address) == 0 || errno == EINPROGRESS)
			break;
	int server = MUST(accept(listener, NULL, NULL));
	MUST(write(server, "x", 1));
	struct pollfd poller = {.fd = attempt, .events = POLLIN};
	char byte = 0;
	MUST(poll(&poller, 1, 5000));
	CHECK(read(attempt, &byte, 1) == 1 && byte == 'x', "a second attempt gets nothing");
	wl_pass();
}
