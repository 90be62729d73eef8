// SPDX-License-Identifier: Apache-2.0
/* A pipe with content whose readers are gone: it can still be read by whoever opens /proc/self/fd/N of its writer. */
/* wl: */
#include "fd.h"

int main(void)
{
	int ends[2];
	char path[40];
	wl_begin();
	signal(SIGPIPE, SIG_IGN);
	MUST(pipe2(ends, O_NONBLOCK));
	fd_put(ends[1], "never read", 10);
	close(ends[0]);
	struct fd_facts was = fd_look(ends[1]);
	wl_ready_wait();
	fd_check(&was, "write end");
	CHECK(write(ends[1], "x", 1) == -1 && errno == EPIPE, "a pipe without a reader takes a byte");
	snprintf(path, sizeof path, "/proc/self/fd/%d", ends[1]);
	int reader = MUST(open(path, O_RDONLY | O_NONBLOCK));
	CHECK(fd_poll(reader) & POLLIN, "pipe: nothing to read");
	fd_expect_text(reader, "never read", "pipe");
	wl_pass();
}
