// SPDX-License-Identifier: Apache-2.0
/* UDP sockets that are connected without having been bound: the kernel chose address and port. */
/* wl: */
#include "sk.h"

int main(void)
{
	char own[INET6_ADDRSTRLEN] = "127.0.0.1";
	wl_begin();
	int server = MUST(socket(AF_INET, SOCK_DGRAM, 0)), server6 = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	int client = MUST(socket(AF_INET, SOCK_DGRAM, 0)), client6 = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	int mapped = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	int port = sk_bind_ip(server, "127.0.0.1", 0), port6 = sk_bind_ip(server6, "::1", 0);
	sk_connect_ip(client, "127.0.0.1", port);
	sk_connect_ip(client6, "::1", port6);
	sk_connect_ip(mapped, "::ffff:127.0.0.1", port);
	int chosen = sk_port(client), chosen6 = sk_port(client6), chosen_mapped = sk_port(mapped);
	wl_ready_wait();
	sk_same_ip(client, false, own, chosen, "client");
	sk_same_ip(client, true, "127.0.0.1", port, "client");
	sk_same_ip(client6, false, "::1", chosen6, "v6 client");
	sk_same_ip(client6, true, "::1", port6, "v6 client");
	sk_same_ip(mapped, false, "::ffff:127.0.0.1", chosen_mapped, "mapped client");
	sk_same_ip(mapped, true, "::ffff:127.0.0.1", port, "mapped client");
	fd_put(client, "four", 4);
	fd_expect_text(server, "four", "server");
	fd_put(mapped, "mapped", 6);
	fd_expect_text(server, "mapped", "server");
	fd_put(client6, "six", 3);
	fd_expect_text(server6, "six", "v6 server");
	wl_pass();
}
