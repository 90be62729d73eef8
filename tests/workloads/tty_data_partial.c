// SPDX-License-Identifier: Apache-2.0
/* A line that was begun and not ended in a terminal in canonical mode: it can still be changed, and comes when it ends. */
/* wl: */
#include "tty.h"

int main(void)
{
	wl_begin();
	struct tty tty = tty_make(O_NONBLOCK);
	struct termios quiet = tty_termios(tty.slave);
	quiet.c_lflag &= ~(tcflag_t)ECHO;
	MUST(tcsetattr(tty.slave, TCSANOW, &quiet));
	fd_put(tty.master, "line\nincomplX", 13);
	usleep(50000); /* the kernel hands data over in a work queue */
	wl_ready_wait();
	tty_same_termios(&quiet, tty.slave, "terminal");
	fd_expect_text(tty.slave, "line\n", "whole line");
	fd_expect_error(tty.slave, EAGAIN, "an incomplete line");
	fd_put(tty.master, "\177ete\n", 5); /* erases the X */
	fd_expect_text(tty.slave, "incomplete\n", "completed line");
	fd_expect_error(tty.slave, EAGAIN, "after the line");
	wl_pass();
}
