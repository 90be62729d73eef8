// SPDX-License-Identifier: Apache-2.0
/* UNIX connections through named listeners, one of which is closed, with data in flight. */
/* wl: */
#include "sk.h"

static int server, client, closed_client;

static void child(void *argument)
{
	(void)argument;
	close(server);
	client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(client, "server");
	fd_put(client, "from the client", 15);
	wl_child_ready_wait();
	fd_expect_text(client, "to the client", "client");
	fd_put(client, ", bye", 5);
}

int main(void)
{
	wl_begin();
	server = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(server, "server");
	MUST(listen(server, 5));
	int named_client = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0)), packets = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	sk_bind(packets, "packets");
	MUST(listen(packets, 5));
	sk_bind(named_client, "named client");
	sk_connect(named_client, "packets");
	int accepted_named = MUST(accept(packets, NULL, NULL));
	fd_put(named_client, "one", 3);
	fd_put(named_client, "two", 3);
	closed_client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	int closing = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(closing, "closing");
	MUST(listen(closing, 5));
	sk_connect(closed_client, "closing");
	int accepted_closed = MUST(accept4(closing, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
	close(closing); /* its connections live on */
	pid_t pid = wl_child(child, NULL);
	int accepted = MUST(accept(server, NULL, NULL));
	fd_put(accepted, "to the client", 13);
	struct fd_facts was = fd_look(accepted_closed);
	wl_ready_wait();
	fd_check(&was, "accepted");
	fd_expect_text(accepted_named, "one", "first packet");
	fd_expect_text(accepted_named, "two", "second packet");
	fd_put(accepted_closed, "still connected", 15);
	fd_expect_text(closed_client, "still connected", "client of a closed listener");
	wl_end(pid);
	fd_expect_text(accepted, "from the client, bye", "accepted");
	fd_expect_end(accepted, "the client is gone");
	int late = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(late, "server");
	close(MUST(accept(server, NULL, NULL)));
	wl_pass();
}
