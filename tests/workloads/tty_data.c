// SPDX-License-Identifier: Apache-2.0
/* Data queued in pseudo-terminals: typed and not read, written and not shown, whole lines. */
/* wl: */
#include "tty.h"

int main(void)
{
	wl_begin();
	struct tty raw = tty_make(O_NONBLOCK), lines = tty_make(O_NONBLOCK);
	tty_raw(raw.slave);
	struct termios quiet = tty_termios(lines.slave);
	quiet.c_lflag &= ~(tcflag_t)ECHO;
	MUST(tcsetattr(lines.slave, TCSANOW, &quiet));
	fd_put(raw.master, "typed", 5);
	fd_put(raw.slave, "shown", 5);
	fd_put(lines.master, "one line\nanother\n", 17);
	usleep(50000); /* the kernel hands data over in a work queue */
	wl_ready_wait();
	tty_same_termios(&quiet, lines.slave, "lines");
	fd_expect_text(raw.slave, "typed", "typed");
	fd_expect_text(raw.master, "shown", "shown");
	fd_expect_text(lines.slave, "one line\n", "first line");
	fd_expect_text(lines.slave, "another\n", "second line");
	fd_expect_error(lines.slave, EAGAIN, "after the last line");
	fd_expect_error(raw.slave, EAGAIN, "after what was typed");
	fd_expect_error(raw.master, EAGAIN, "after what was shown");
	wl_pass();
}
