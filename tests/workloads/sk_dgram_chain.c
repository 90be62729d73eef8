// SPDX-License-Identifier: Apache-2.0
/* UNIX datagram sockets connected in a chain, each with a datagram queued.  Linux lets nobody connect or send to a socket
 * that has another peer, so a chain exists only if it was connected, and filled, from its first link on. */
/* wl: */
#include "sk.h"

int main(void)
{
	static const char *const names[] = {"first", "second", "third"};
	int fds[3];
	wl_begin();
	for (int i = 0; i < 3; i++) {
		fds[i] = MUST(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0));
		sk_bind(fds[i], names[i]);
	}
	for (int i = 0; i < 2; i++) {
		sk_connect(fds[i], names[i + 1]);
		fd_put(fds[i], names[i], strlen(names[i]));
	}
	wl_ready_wait();
	CHECK(write(fds[0], "x", 1) == -1 && errno == EPERM, "the chain is open");
	for (int i = 0; i < 3; i++)
		sk_names(fds[i], names[i], i == 2 ? "-" : names[i + 1], names[i]);
	for (int i = 0; i < 2; i++) {
		fd_expect_text(fds[i + 1], names[i], names[i + 1]);
		fd_expect_error(fds[i + 1], EAGAIN, names[i + 1]);
	}
	fd_put(fds[1], "new", 3);
	fd_expect_text(fds[2], "new", "end of the chain");
	wl_pass();
}
