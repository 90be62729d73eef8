// SPDX-License-Identifier: Apache-2.0
/* The names of both ends of UNIX connections that were made through named listeners: the accepted end has its
 * listener's, also when the listener is gone. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	int server = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(server, "server");
	MUST(listen(server, 5));
	sk_connect(client, "server");
	int accepted = MUST(accept(server, NULL, NULL));
	int packets = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0)), named_client = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	sk_bind(packets, "packets");
	MUST(listen(packets, 5));
	sk_bind(named_client, "named client");
	sk_connect(named_client, "packets");
	int accepted_named = MUST(accept(packets, NULL, NULL));
	int closing = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), closed_client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	char abstract[60];
	snprintf(abstract, sizeof abstract, "@torpor-closing-%d", getpid());
	sk_bind(closing, abstract);
	MUST(listen(closing, 5));
	sk_connect(closed_client, abstract);
	int accepted_closed = MUST(accept(closing, NULL, NULL));
	close(closing); /* its connections live on, and its name cannot be taken before they end */
	int removed = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), removed_client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(removed, "removed");
	MUST(listen(removed, 5));
	sk_connect(removed_client, "removed");
	int accepted_removed = MUST(accept(removed, NULL, NULL));
	close(removed);
	MUST(unlink("removed"));
	wl_ready_wait();
	sk_names(client, NULL, "server", "client");
	sk_names(accepted, "server", NULL, "accepted");
	sk_names(named_client, "named client", "packets", "named client");
	sk_names(accepted_named, "packets", "named client", "accepted from the named client");
	sk_names(closed_client, NULL, abstract, "client of a closed listener");
	sk_names(accepted_closed, abstract, NULL, "accepted by a closed listener");
	sk_names(removed_client, NULL, "removed", "client of a removed listener");
	sk_names(accepted_removed, "removed", NULL, "accepted by a removed listener");
	CHECK(access("removed", F_OK) == -1, "the removed name is back");
	fd_put(removed_client, "still connected", 15);
	fd_expect_text(accepted_removed, "still connected", "connection of a removed listener");
	fd_put(accepted_closed, "still connected", 15);
	fd_expect_text(closed_client, "still connected", "connection of a closed listener");
	int late = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(late, "server");
	close(MUST(accept(server, NULL, NULL)));
	wl_pass();
}
