// SPDX-License-Identifier: Apache-2.0
/* Three listening TCP sockets on one port (SO_REUSEPORT), one of them in a child: as web servers' workers have it. */
/* wl: */
#include "sk.h"

static int port;

static int listener(void)
{
	int fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	sk_set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	port = sk_bind_ip(fd, "127.0.0.1", port);
	MUST(listen(fd, 50));
	return fd;
}

static void child(void *argument)
{
	(void)argument;
	int own = listener();
	wl_child_ready_wait();
	sk_same_ip(own, false, "127.0.0.1", port, "child");
	int n = 0;
	while (accept(own, NULL, NULL) != -1)
		n++;
	_exit(n > 0 && n < 40 ? 0 : 1);
}

int main(void)
{
	wl_begin();
	int one = listener(), two = listener();
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	CHECK(!fd_same(one, two), "two sockets are one");
	for (int i = 0; i < 40; i++)
		sk_connect_ip(MUST(socket(AF_INET, SOCK_STREAM, 0)), "127.0.0.1", port);
	int n1 = 0, n2 = 0;
	while (accept(one, NULL, NULL) != -1)
		n1++;
	while (accept(two, NULL, NULL) != -1)
		n2++;
	CHECK(n1 && n2 && n1 + n2 < 40, "%d and %d connections of 40 here", n1, n2);
	wl_end(pid);
	wl_pass();
}
