// SPDX-License-Identifier: Apache-2.0
/* One UNIX connection that waits in a listener's backlog. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	int server = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)), client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(server, "server");
	MUST(listen(server, 5));
	sk_connect(client, "server");
	wl_ready_wait();
	int accepted = MUST(accept(server, NULL, NULL));
	fd_put(client, "hello", 5);
	fd_expect_text(accepted, "hello", "accepted");
	fd_put(accepted, "answer", 6);
	fd_expect_text(client, "answer", "client");
	CHECK(accept(server, NULL, NULL) == -1 && errno == EAGAIN, "one more in the backlog");
	int late = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(late, "server");
	close(MUST(accept(server, NULL, NULL)));
	wl_pass();
}
