// SPDX-License-Identifier: Apache-2.0
/* Connected pairs of one type (PAIR_TYPE): in one task, between tasks, with queued data in both directions. */
#include "sk.h"

static int own[2], split[2];
#define STREAM (PAIR_TYPE == SOCK_STREAM)

static void child(void *argument)
{
	(void)argument;
	close(split[0]);
	fd_put(split[1], "early from the child", 20);
	wl_child_ready_wait();
	fd_expect_text(split[1], "to the child", "child");
	fd_put(split[1], ", late", 6);
}

int main(void)
{
	static char big[30000];
	int empty[2];
	wl_begin();
	MUST(socketpair(AF_UNIX, PAIR_TYPE | SOCK_NONBLOCK, 0, own));
	MUST(socketpair(AF_UNIX, PAIR_TYPE | SOCK_CLOEXEC, 0, split));
	MUST(socketpair(AF_UNIX, PAIR_TYPE, 0, empty));
	MUST(fcntl(own[1], F_SETFL, 0));
	wl_fill(big, sizeof big, 4);
	fd_put(own[0], "one", 3);
	fd_put(own[0], "two", 3);
	fd_put(own[0], big, sizeof big);
	fd_put(own[1], "back", 4);
	fd_put(split[0], "to the child", 12);
	pid_t pid = wl_child(child, NULL);
	close(split[1]);
	int fds[] = {own[0], own[1], split[0], empty[0], empty[1]};
	struct fd_facts was[5];
	for (int i = 0; i < 5; i++)
		was[i] = fd_look(fds[i]);
	wl_ready_wait();
	for (int i = 0; i < 5; i++) {
		fd_check(&was[i], (const char *[]){"own 0", "own 1", "split", "empty 0", "empty 1"}[i]);
		CHECK(sk_get(fds[i], SOL_SOCKET, SO_TYPE) == PAIR_TYPE, "type %d", sk_get(fds[i], SOL_SOCKET, SO_TYPE));
		sk_names(fds[i], NULL, NULL, "pair");
	}
	CHECK(fd_poll(empty[0]) == POLLOUT, "empty pair: poll gives %#x", fd_poll(empty[0]));
	if (STREAM) {
		char all[sizeof big + 6];
		memcpy(all, "onetwo", 6);
		memcpy(all + 6, big, sizeof big);
		fd_expect(own[1], all, sizeof all, "stream");
	} else {
		fd_expect_text(own[1], "one", "first message");
		fd_expect_text(own[1], "two", "second message");
		fd_expect(own[1], big, sizeof big, "third message");
	}
	MUST(fcntl(own[1], F_SETFL, O_NONBLOCK));
	fd_expect_error(own[1], EAGAIN, "read to the end");
	fd_expect_text(own[0], "back", "other direction");
	fd_expect_error(own[0], EAGAIN, "other direction, read to the end");
	fd_put(empty[1], "new", 3);
	fd_expect_text(empty[0], "new", "new data");
	wl_end(pid);
	if (STREAM)
		fd_expect_text(split[0], "early from the child, late", "from the child");
	else {
		fd_expect_text(split[0], "early from the child", "from the child");
		fd_expect_text(split[0], ", late", "from the child");
	}
	if (PAIR_TYPE == SOCK_DGRAM)
		CHECK(send(split[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "peer is gone: %s", strerror(errno));
	else {
		fd_expect_end(split[0], "the child is gone");
		CHECK(send(split[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "peer is gone: %s", strerror(errno));
	}
	wl_pass();
}
