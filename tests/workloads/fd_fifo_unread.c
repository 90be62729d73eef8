// SPDX-License-Identifier: Apache-2.0
/* A FIFO with content of which only the write end is open: who opens it for reading finds the content. */
/* wl: */
#include "fd.h"

int main(void)
{
	wl_begin();
	signal(SIGPIPE, SIG_IGN);
	MUST(mkfifo("half", 0600));
	int helper = MUST(open("half", O_RDWR));
	int half = MUST(open("half", O_WRONLY | O_NONBLOCK));
	fd_put(half, "nobody reads", 12);
	close(helper);
	struct fd_facts was = fd_look(half);
	wl_ready_wait();
	fd_check_inode(&was, "write end");
	CHECK(write(half, "x", 1) == -1 && errno == EPIPE, "a FIFO without a reader takes a byte");
	helper = MUST(open("half", O_RDONLY | O_NONBLOCK));
	CHECK(fd_poll(helper) & POLLIN, "half: nothing to read");
	fd_expect_text(helper, "nobody reads", "half");
	wl_pass();
}
