// SPDX-License-Identifier: Apache-2.0
/* UNIX datagram sockets connected to themselves and to each other by their names, each with a datagram queued. */
/* wl: */
#include "sk.h"

int main(void)
{
	static const char *const names[] = {"self", "left", "right"};
	static const int peers[] = {0, 2, 1};
	int fds[3];
	wl_begin();
	for (int i = 0; i < 3; i++) {
		fds[i] = MUST(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0));
		sk_bind(fds[i], names[i]);
	}
	for (int i = 0; i < 3; i++)
		sk_connect(fds[i], names[peers[i]]);
	for (int i = 0; i < 3; i++)
		fd_put(fds[i], names[i], strlen(names[i]));
	wl_ready_wait();
	for (int i = 0; i < 3; i++) {
		sk_names(fds[i], names[i], names[peers[i]], names[i]);
		fd_expect_text(fds[peers[i]], names[i], names[peers[i]]);
		fd_expect_error(fds[peers[i]], EAGAIN, names[peers[i]]);
		fd_put(fds[i], "new", 3);
		fd_expect_text(fds[peers[i]], "new", names[peers[i]]);
	}
	wl_pass();
}
