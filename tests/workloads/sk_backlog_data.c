// SPDX-License-Identifier: Apache-2.0
/* UNIX connections that wait in a listener's backlog, with data already sent, in order; one of them from a child. */
/* wl: refused=nobody_has_accepted */
#include "sk.h"

static void child(void *argument)
{
	(void)argument;
	int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(client, "server");
	fd_put(client, "child", 5);
	wl_child_ready_wait();
	fd_expect_text(client, "answer", "child");
}

int main(void)
{
	wl_begin();
	int server = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
	int first = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), last = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(server, "server");
	MUST(listen(server, 5));
	sk_connect(first, "server");
	fd_put(first, "first", 5);
	pid_t pid = wl_child(child, NULL);
	sk_connect(last, "server");
	wl_ready_wait();
	sk_names(first, NULL, "server", "first client");
	int accepted = MUST(accept(server, NULL, NULL));
	fd_expect_text(accepted, "first", "first in the backlog");
	sk_names(accepted, "server", NULL, "first accepted");
	fd_put(accepted, "reply", 5);
	fd_expect_text(first, "reply", "first client");
	accepted = MUST(accept(server, NULL, NULL));
	fd_expect_text(accepted, "child", "second in the backlog");
	fd_put(accepted, "answer", 6);
	wl_end(pid);
	fd_put(last, "last", 4);
	accepted = MUST(accept(server, NULL, NULL));
	fd_expect_text(accepted, "last", "last in the backlog");
	CHECK(accept(server, NULL, NULL) == -1 && errno == EAGAIN, "one more in the backlog");
	wl_pass();
}
