// SPDX-License-Identifier: Apache-2.0
/* SO_PEERCRED of UNIX sockets: who made the pair, who listened, who connected, also with other ids than now. */
/* wl: */
#include "sk.h"

static int server, child_client = -1, pair[2];

static void expect(int fd, pid_t pid, uid_t uid, gid_t gid, const char *what)
{
	struct ucred now;
	socklen_t length = sizeof now;
	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &now, &length));
	CHECK(now.pid == pid && now.uid == uid && now.gid == gid, "%s: pid %d, ids %d:%d; was %d, %d:%d", what, now.pid, now.uid,
	      now.gid, pid, uid, gid);
}

static void child(void *argument)
{
	(void)argument;
	MUST(setegid(22));
	MUST(seteuid(11));
	child_client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(child_client, "server");
	MUST(seteuid(0));
	MUST(setegid(0));
	wl_child_ready_wait();
	expect(child_client, getppid(), 0, 0, "child's client");
	expect(pair[0], getppid(), 0, 0, "inherited pair");
}

int main(void)
{
	wl_begin();
	if (geteuid() != 0)
		wl_skip("needs root");
	MUST(chmod(getenv("WL_DIR"), 0777));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	server = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(server, "server");
	MUST(chmod("server", 0777));
	MUST(listen(server, 5));
	pid_t pid = wl_child(child, NULL);
	int accepted = MUST(accept(server, NULL, NULL));
	expect(accepted, pid, 11, 22, "accepted");
	wl_ready_wait();
	expect(pair[0], getpid(), 0, 0, "pair");
	expect(accepted, pid, 11, 22, "accepted");
	wl_end(pid);
	wl_pass();
}
