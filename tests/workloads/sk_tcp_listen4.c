// SPDX-License-Identifier: Apache-2.0
/* A listening TCP socket over IPv4: address, port, backlog, flags; takes a connection. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	int server = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
	int any = MUST(socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
	int port = sk_bind_ip(server, "127.0.0.1", 0), any_port = sk_bind_ip(any, "0.0.0.0", 0);
	MUST(listen(server, 17));
	MUST(listen(any, 4096));
	int twin = MUST(dup(server));
	struct fd_facts was = fd_look(server), was2 = fd_look(any);
	wl_ready_wait();
	fd_check(&was, "server");
	fd_check(&was2, "any");
	CHECK(fd_same(server, twin), "duplicates are apart");
	sk_same_ip(server, false, "127.0.0.1", port, "server");
	sk_same_ip(any, false, "0.0.0.0", any_port, "any");
	CHECK(sk_get(server, SOL_SOCKET, SO_ACCEPTCONN) == 1, "not listening");
	CHECK(sk_get(server, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP, "protocol %d", sk_get(server, SOL_SOCKET, SO_PROTOCOL));
	struct tcp_info info;
	socklen_t length = sizeof info;
	MUST(getsockopt(server, IPPROTO_TCP, TCP_INFO, &info, &length));
	CHECK(info.tcpi_sacked == 17, "backlog %u", info.tcpi_sacked); /* of a listening socket: its backlog's limit */
	CHECK(accept(server, NULL, NULL) == -1 && errno == EAGAIN, "a connection from nowhere");
	int client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_connect_ip(client, "127.0.0.1", port);
	int accepted = MUST(accept(server, NULL, NULL));
	fd_put(client, "hello", 5);
	fd_expect_text(accepted, "hello", "accepted");
	client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_connect_ip(client, "127.0.0.1", any_port);
	close(MUST(accept(any, NULL, NULL)));
	wl_pass();
}
