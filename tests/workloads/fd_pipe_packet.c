// SPDX-License-Identifier: Apache-2.0
/* A pipe in packet mode (O_DIRECT): every read gives one write. */
/* wl: */
#include "fd.h"

int main(void)
{
	int ends[2];
	wl_begin();
	MUST(pipe2(ends, O_DIRECT | O_NONBLOCK));
	fd_put(ends[1], "one", 3);
	fd_put(ends[1], "twotwo", 6);
	fd_put(ends[1], "3", 1);
	struct fd_facts was = fd_look(ends[1]);
	CHECK(was.flags & O_DIRECT, "no packet mode");
	wl_ready_wait();
	fd_check(&was, "packet pipe");
	fd_expect_text(ends[0], "one", "first packet");
	fd_expect_text(ends[0], "twotwo", "second packet");
	fd_expect_text(ends[0], "3", "third packet");
	fd_expect_error(ends[0], EAGAIN, "empty");
	fd_put(ends[1], "new", 3);
	fd_put(ends[1], "newer", 5);
	fd_expect_text(ends[0], "new", "new packet");
	fd_expect_text(ends[0], "newer", "newer packet");
	wl_pass();
}
