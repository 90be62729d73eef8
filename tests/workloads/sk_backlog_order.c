// SPDX-License-Identifier: Apache-2.0
/* Three UNIX connections that wait in a listener's backlog, in their order; one of them from a child. */
/* wl: */
#include "sk.h"

static void child(void *argument)
{
	(void)argument;
	int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(client, "server");
	wl_child_ready_wait();
	fd_put(client, "2", 1);
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
	pid_t pid = wl_child(child, NULL);
	sk_connect(last, "server");
	wl_ready_wait();
	sk_names(first, NULL, "server", "first client");
	fd_put(first, "1", 1);
	MUST(kill(pid, SIGTERM)); /* it puts 2 */
	fd_put(last, "3", 1);
	char order[4] = "";
	int accepted[3];
	for (int i = 0; i < 3; i++) {
		accepted[i] = MUST(accept(server, NULL, NULL));
		struct pollfd entry = {accepted[i], POLLIN, 0};
		CHECK(poll(&entry, 1, 10000) == 1, "nothing comes from one in the backlog");
		MUST(read(accepted[i], order + i, 1));
	}
	CHECK(!strcmp(order, "123"), "the order of the backlog is %s", order);
	sk_names(accepted[0], "server", NULL, "first accepted");
	fd_put(accepted[0], "reply", 5);
	fd_expect_text(first, "reply", "first client");
	fd_put(accepted[1], "answer", 6);
	wl_reap(pid);
	CHECK(accept(server, NULL, NULL) == -1 && errno == EAGAIN, "one more in the backlog");
	wl_pass();
}
