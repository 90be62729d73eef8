// SPDX-License-Identifier: Apache-2.0
/* Queued UNIX datagrams say who sent them: a name, none, a socket that is closed by now, or one whose name is gone. */
/* wl: */
#include "sk.h"

static int server;

static void from(const char *name, const char *text)
{
	char buffer[100];
	struct sockaddr_un address = {0};
	socklen_t length = sizeof address;
	ssize_t n = recvfrom(server, buffer, sizeof buffer, MSG_DONTWAIT, (struct sockaddr *)&address, &length);
	CHECK(n == (ssize_t)strlen(text) && !memcmp(buffer, text, (size_t)n), "got %zd bytes, expected %s", n, text);
	if (name)
		sk_same_name(&address, length, name, text);
	else
		EXPECT(length == 0 || length == sizeof(sa_family_t), "%s: came from a name of length %d", text, (int)length);
}

int main(void)
{
	wl_begin();
	server = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	int named = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), anonymous = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	int closed = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), removed = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	sk_bind(server, "server");
	sk_bind(named, "named");
	sk_bind(closed, "closed");
	sk_bind(removed, "removed");
	sk_connect(named, "server");
	sk_connect(anonymous, "server");
	sk_connect(closed, "server");
	sk_connect(removed, "server");
	fd_put(anonymous, "from anonymous", 14);
	fd_put(named, "from named", 10);
	fd_put(closed, "from closed", 11);
	fd_put(removed, "from removed", 12);
	fd_put(anonymous, "again", 5);
	close(closed);
	close(removed);
	MUST(unlink("removed"));
	wl_ready_wait();
	from(NULL, "from anonymous");
	from("named", "from named");
	from("closed", "from closed");
	from("removed", "from removed");
	from(NULL, "again");
	CHECK(access("removed", F_OK) == -1, "the removed name is back");
	struct stat now;
	MUST(stat("closed", &now));
	CHECK(S_ISSOCK(now.st_mode), "the closed socket's file is another");
	socklen_t length;
	struct sockaddr_un address = sk_name("closed", &length);
	int late = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	CHECK(connect(late, (struct sockaddr *)&address, length) == -1 && errno == ECONNREFUSED, "somebody is behind the closed name");
	wl_pass();
}
