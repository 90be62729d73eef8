// SPDX-License-Identifier: Apache-2.0
/* Pipes of which one end is closed: with content left to read, empty, and without a reader. */
/* wl: */
#include "fd.h"

int main(void)
{
	int filled[2], empty[2], deaf[2];
	wl_begin();
	signal(SIGPIPE, SIG_IGN);
	MUST(pipe(filled));
	MUST(pipe(empty));
	MUST(pipe(deaf));
	fd_put(filled[1], "left over", 9);
	close(filled[1]);
	close(empty[1]);
	close(deaf[0]);
	struct fd_facts was[] = {fd_look(filled[0]), fd_look(empty[0]), fd_look(deaf[1])};
	wl_ready_wait();
	for (int i = 0; i < 3; i++)
		fd_check(&was[i], (const char *[]){"filled", "empty", "deaf"}[i]);
	CHECK(fd_poll(filled[0]) == (POLLIN | POLLHUP), "filled: poll gives %#x", fd_poll(filled[0]));
	fd_expect_text(filled[0], "left over", "filled");
	fd_expect_end(filled[0], "filled");
	fd_expect_end(empty[0], "empty");
	CHECK(write(deaf[1], "x", 1) == -1 && errno == EPIPE, "a pipe without a reader takes a byte");
	CHECK(fd_poll(deaf[1]) & POLLERR, "deaf: poll gives %#x", fd_poll(deaf[1]));
	wl_pass();
}
