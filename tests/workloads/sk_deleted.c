// SPDX-License-Identifier: Apache-2.0
/* UNIX sockets whose socket file was removed, or replaced by another socket's, while they listen or are connected. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	int gone = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)), old = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
	int new = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)), client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(gone, "gone");
	MUST(listen(gone, 5));
	sk_connect(client, "gone");
	int accepted = MUST(accept(gone, NULL, NULL));
	MUST(unlink("gone"));
	sk_bind(old, "name");
	MUST(listen(old, 5));
	MUST(unlink("name"));
	sk_bind(new, "name");
	MUST(listen(new, 5));
	fd_put(client, "queued", 6);
	wl_ready_wait();
	sk_names(gone, "gone", "-", "deleted");
	sk_names(old, "name", "-", "replaced");
	sk_names(new, "name", "-", "replacing");
	CHECK(access("gone", F_OK) == -1, "the removed name is back");
	fd_expect_text(accepted, "queued", "accepted");
	int late = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(late, "name");
	CHECK(accept(old, NULL, NULL) == -1 && errno == EAGAIN, "the replaced socket got the connection");
	close(MUST(accept(new, NULL, NULL)));
	wl_pass();
}
