// SPDX-License-Identifier: Apache-2.0
/* Established TCP connections at a dump with --tcp-close: both ends are closed sockets afterwards, the listener works. */
/* wl: opts=--tcp-close same=no */
/* same=no: the connections are gone, as asked for. */
#include "sk.h"

int main(void)
{
	wl_begin();
	int server = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_set(server, SOL_SOCKET, SO_REUSEADDR, 1);
	int port = sk_bind_ip(server, "127.0.0.1", 0);
	MUST(listen(server, 5));
	sk_connect_ip(client, "127.0.0.1", port);
	int accepted = MUST(accept4(server, NULL, NULL, SOCK_CLOEXEC));
	sk_set(accepted, IPPROTO_TCP, TCP_NODELAY, 1);
	struct fd_facts was = fd_look(client), was2 = fd_look(accepted);
	wl_ready_wait();
	fd_check(&was, "client");
	fd_check(&was2, "accepted");
	char byte;
	int fds[] = {client, accepted};
	for (int i = 0; i < 2; i++) {
		struct sockaddr_storage peer;
		socklen_t length = sizeof peer;
		bool connected = getpeername(fds[i], (struct sockaddr *)&peer, &length) == 0;
		if (connected) /* the original that went on, or a restore that keeps connections */
			continue;
		CHECK(sk_get(fds[i], SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP, "no TCP socket");
		ssize_t n = recv(fds[i], &byte, 1, MSG_DONTWAIT);
		CHECK(n == 0 || (n == -1 && errno != EAGAIN), "a closed connection waits for data");
		n = send(fds[i], "x", 1, MSG_NOSIGNAL);
		CHECK(n == -1 && errno == EPIPE, "sending on a closed connection: %zd, %s", n, strerror(errno));
		CHECK(fd_poll(fds[i]) & (POLLHUP | POLLIN | POLLERR), "poll says nothing of the end: %#x", fd_poll(fds[i]));
	}
	int late = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_connect_ip(late, "127.0.0.1", port);
	close(MUST(accept(server, NULL, NULL)));
	wl_pass();
}
