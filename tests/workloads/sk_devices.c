// SPDX-License-Identifier: Apache-2.0
/* Listeners at the same port of different interfaces (SO_BINDTODEVICE). */
/* wl: */
#include "sk.h"

#include <net/if.h>

enum { number = 2 };

int main(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(4712)};
	struct if_nameindex *interfaces = if_nameindex();
	int fds[number];
	wl_begin();
	for (int i = 0; i < number; i++) {
		const char *name = interfaces[i].if_name;
		if (!name)
			wl_skip("there are no two network interfaces");
		fds[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
		MUST(setsockopt(fds[i], SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)strlen(name) + 1));
		MUST(bind(fds[i], (struct sockaddr *)&address, sizeof address));
		MUST(listen(fds[i], 5));
	}
	wl_ready_wait();
	for (int i = 0; i < number; i++) {
		char name[IF_NAMESIZE] = "";
		socklen_t length = sizeof name;
		MUST(getsockopt(fds[i], SOL_SOCKET, SO_BINDTODEVICE, name, &length));
		CHECK(!strcmp(name, interfaces[i].if_name), "socket %d is bound to %s", i, name);
		CHECK(sk_get(fds[i], SOL_SOCKET, SO_ACCEPTCONN) == 1, "socket %d does not listen", i);
	}
	wl_pass();
}
