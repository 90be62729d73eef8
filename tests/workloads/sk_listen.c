// SPDX-License-Identifier: Apache-2.0
/* A listening UNIX socket with a path: the same file, mode and owner, accepts a connection, remembers its backlog. */
/* wl: */
#include "sk.h"

int main(void)
{
	struct stat before, after;
	char path[PATH_MAX];
	wl_begin();
	int server = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
	int packets = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	snprintf(path, sizeof path, "%s/stream", getenv("WL_DIR"));
	sk_bind(server, path);
	MUST(chmod(path, 0620));
	MUST(chown(path, 123, 456));
	MUST(stat(path, &before));
	MUST(listen(server, 2));
	char path2[PATH_MAX + 10];
	snprintf(path2, sizeof path2, "%s/packets", getenv("WL_DIR"));
	sk_bind(packets, path2);
	MUST(listen(packets, 128));
	struct fd_facts was = fd_look(server);
	wl_ready_wait();
	fd_check(&was, "listening socket");
	sk_names(server, path, "-", "stream");
	sk_names(packets, path2, "-", "packets");
	CHECK(sk_get(server, SOL_SOCKET, SO_ACCEPTCONN) == 1, "not listening");
	CHECK(accept(server, NULL, NULL) == -1 && errno == EAGAIN, "a connection from nowhere");
	MUST(stat(path, &after));
	CHECK(after.st_mode == before.st_mode && after.st_uid == 123 && after.st_gid == 456, "mode %#o, owner %d:%d", after.st_mode,
	      after.st_uid, after.st_gid);
	int clients[4];
	for (int i = 0; i < 4; i++)
		clients[i] = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
	for (int i = 0; i < 3; i++)
		sk_connect(clients[i], path);
	socklen_t length;
	struct sockaddr_un address = sk_name(path, &length);
	CHECK(connect(clients[3], (struct sockaddr *)&address, length) == -1 && errno == EAGAIN, "a longer backlog than before");
	int accepted = MUST(accept(server, NULL, NULL));
	fd_put(clients[0], "hello", 5);
	fd_expect_text(accepted, "hello", "accepted");
	int client = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	sk_connect(client, path2);
	fd_put(client, "packet", 6);
	fd_expect_text(MUST(accept(packets, NULL, NULL)), "packet", "accepted packets");
	wl_pass();
}
