// SPDX-License-Identifier: Apache-2.0
/* UNIX stream and packet sockets that do not listen and are not connected: fresh, or bound to a name. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	int fresh = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
	int packets = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0)), bound = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(bound, "bound");
	struct fd_facts was = fd_look(fresh), was2 = fd_look(packets);
	wl_ready_wait();
	fd_check(&was, "fresh");
	fd_check(&was2, "packets");
	sk_names(fresh, NULL, "-", "fresh");
	sk_names(packets, NULL, "-", "packets");
	sk_names(bound, "bound", "-", "bound");
	CHECK(sk_get(packets, SOL_SOCKET, SO_TYPE) == SOCK_SEQPACKET, "another type");
	CHECK(sk_get(bound, SOL_SOCKET, SO_ACCEPTCONN) == 0, "listens");
	socklen_t length;
	struct sockaddr_un address = sk_name("bound", &length);
	CHECK(connect(client, (struct sockaddr *)&address, length) == -1 && errno == ECONNREFUSED, "a connection is taken");
	MUST(listen(bound, 1));
	sk_connect(fresh, "bound");
	close(MUST(accept(bound, NULL, NULL)));
	unlink("packets"); /* where the original, going on, has bound it */
	sk_bind(packets, "packets");
	MUST(listen(packets, 1));
	wl_pass();
}
