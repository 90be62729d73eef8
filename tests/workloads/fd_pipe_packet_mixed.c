// SPDX-License-Identifier: Apache-2.0
/* Pipes whose packet mode was turned on or off since: what is a packet depends on how it was written. */
/* wl: */
#include "fd.h"

static void part(int fd, const char *text, const char *what)
{
	char buffer[100];
	ssize_t n = read(fd, buffer, strlen(text));
	CHECK(n == (ssize_t)strlen(text) && !memcmp(buffer, text, (size_t)n), "%s: %zd bytes", what, n);
}

int main(void)
{
	int packet[2], plain[2], both[2];
	wl_begin();
	MUST(pipe2(packet, O_DIRECT | O_NONBLOCK));
	MUST(pipe2(plain, O_NONBLOCK));
	MUST(pipe2(both, O_DIRECT | O_NONBLOCK));
	fd_put(packet[1], "packet", 6);
	MUST(fcntl(packet[1], F_SETFL, O_NONBLOCK));
	fd_put(plain[1], "plain", 5);
	MUST(fcntl(plain[1], F_SETFL, O_DIRECT | O_NONBLOCK));
	fd_put(both[1], "first", 5);
	fd_put(both[1], "second", 6);
	MUST(fcntl(both[1], F_SETFL, O_NONBLOCK));
	fd_put(both[1], "plain", 5);
	wl_ready_wait();
	part(packet[0], "pac", "packet");
	fd_expect_error(packet[0], EAGAIN, "what was left of the packet");
	part(plain[0], "pl", "plain");
	fd_expect_text(plain[0], "ain", "what was left of the stream");
	part(both[0], "fi", "first packet");
	fd_expect_text(both[0], "second", "second packet");
	part(both[0], "pla", "plain after packets");
	fd_expect_text(both[0], "in", "what was left after packets");
	wl_pass();
}
