// SPDX-License-Identifier: Apache-2.0
/* Abstract UNIX names: listening, datagram, with NUL bytes inside, autobound. */
/* wl: */
#include "sk.h"

int main(void)
{
	char name[60], datagram_name[60];
	struct sockaddr_un odd = {.sun_family = AF_UNIX}, now, automatic;
	wl_begin();
	snprintf(name, sizeof name, "@torpor-listening-%d", getpid());
	snprintf(datagram_name, sizeof datagram_name, "@torpor-datagram-%d", getpid());
	int server = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), datagrams = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	sk_bind(server, name);
	MUST(listen(server, 5));
	sk_bind(datagrams, datagram_name);
	int with_nul = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	memcpy(odd.sun_path, "\0a\0b\0\n", 6);
	memcpy(odd.sun_path + 6, &(pid_t){getpid()}, 4);
	socklen_t odd_length = offsetof(struct sockaddr_un, sun_path) + 10, length = sizeof automatic;
	MUST(bind(with_nul, (struct sockaddr *)&odd, odd_length));
	int autobound = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	automatic.sun_family = AF_UNIX;
	MUST(bind(autobound, (struct sockaddr *)&automatic, sizeof(sa_family_t)));
	MUST(getsockname(autobound, (struct sockaddr *)&automatic, &length));
	wl_ready_wait();
	sk_names(server, name, "-", "listening");
	sk_names(datagrams, datagram_name, "-", "datagrams");
	int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(client, name);
	fd_put(client, "hello", 5);
	fd_expect_text(MUST(accept(server, NULL, NULL)), "hello", "accepted");
	int sender = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	sk_connect(sender, datagram_name);
	fd_put(sender, "datagram", 8);
	fd_expect_text(datagrams, "datagram", "datagram");
	socklen_t now_length = sizeof now;
	MUST(getsockname(with_nul, (struct sockaddr *)&now, &now_length));
	CHECK(now_length == odd_length && !memcmp(&now, &odd, odd_length), "the name with NUL bytes is another");
	MUST(connect(sender, (struct sockaddr *)&odd, odd_length));
	fd_put(sender, "odd", 3);
	fd_expect_text(with_nul, "odd", "name with NUL bytes");
	now_length = sizeof now;
	MUST(getsockname(autobound, (struct sockaddr *)&now, &now_length));
	CHECK(now_length == length && !memcmp(&now, &automatic, length), "the autobound name is another");
	wl_pass();
}
