// SPDX-License-Identifier: Apache-2.0
/* A slave whose master was closed: hung up, it reads end of file and writes EIO; and a master whose slave was closed. */
/* wl: */
#include "tty.h"

int main(void)
{
	char byte;
	wl_begin();
	struct tty orphan = tty_make(0), left = tty_make(0);
	close(orphan.master);
	close(left.slave);
	struct fd_facts was = fd_look(orphan.slave);
	wl_ready_wait();
	fd_check(&was, "slave");
	CHECK(fd_poll(orphan.slave) & POLLHUP, "slave: poll gives %#x", fd_poll(orphan.slave));
	fd_expect_end(orphan.slave, "slave without a master");
	CHECK(write(orphan.slave, "x", 1) == -1 && errno == EIO, "a slave without a master takes a byte");
	CHECK(fd_poll(left.master) & POLLHUP, "master: poll gives %#x", fd_poll(left.master));
	CHECK(read(left.master, &byte, 1) == -1 && errno == EIO, "master without a slave: %s", strerror(errno));
	int again = MUST(open(left.name, O_RDWR | O_NOCTTY));
	tty_raw(again);
	fd_put(again, "back", 4);
	fd_expect_text(left.master, "back", "a slave opened anew");
	wl_pass();
}
