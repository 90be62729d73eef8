// SPDX-License-Identifier: Apache-2.0
/* UNIX datagram sockets: bound, connected and neither; queued data. */
/* wl: */
#include "sk.h"

int main(void)
{
	int pair[2];
	wl_begin();
	int server = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	int named = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), anonymous = MUST(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	int lonely = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), bound = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	sk_bind(server, "server");
	sk_bind(named, "named");
	sk_bind(bound, "bound");
	sk_connect(named, "server");
	sk_connect(anonymous, "server");
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	fd_put(named, "from named", 10);
	fd_put(anonymous, "from anonymous", 14);
	socklen_t length;
	struct sockaddr_un address = sk_name("server", &length);
	MUST(sendto(bound, "from bound", 10, 0, (struct sockaddr *)&address, length));
	wl_ready_wait();
	sk_names(server, "server", "-", "server");
	sk_names(named, "named", "server", "named");
	sk_names(anonymous, NULL, "server", "anonymous");
	sk_names(bound, "bound", "-", "bound");
	sk_names(lonely, NULL, "-", "lonely");
	fd_expect_text(server, "from named", "server");
	fd_expect_text(server, "from anonymous", "server");
	fd_expect_text(server, "from bound", "server");
	fd_put(named, "new", 3);
	fd_expect_text(server, "new", "server");
	fd_put(anonymous, "new", 3);
	fd_expect_text(server, "new", "server");
	MUST(sendto(lonely, "lonely", 6, 0, (struct sockaddr *)&address, length));
	fd_expect_text(server, "lonely", "server");
	wl_pass();
}
