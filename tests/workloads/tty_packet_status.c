// SPDX-License-Identifier: Apache-2.0
/* Packet mode: a dump must not leave a byte of status that the master would read. */
/* wl: */
#include "tty.h"

int main(void)
{
	int on = 1, still = 0;
	wl_begin();
	struct tty tty = tty_make(O_NONBLOCK);
	struct termios termios = tty_termios(tty.slave);
	termios.c_lflag &= ~(tcflag_t)ECHO;
	MUST(tcsetattr(tty.slave, TCSANOW, &termios));
	MUST(ioctl(tty.master, TIOCPKT, &on));
	fd_put(tty.slave, "shown", 5);
	fd_put(tty.master, "typed\nbeg", 9);
	MUST(poll(&(struct pollfd){.fd = tty.slave, .events = POLLIN}, 1, 5000));
	wl_ready_wait();
	MUST(ioctl(tty.master, TIOCGPKT, &still));
	CHECK(still == 1, "packet mode is off");
	fd_expect(tty.master, "\0shown", 6, "data and no status");
	fd_expect_text(tty.slave, "typed\n", "slave");
	MUST(tcflow(tty.slave, TCOOFF));
	fd_expect(tty.master, (char[]){TIOCPKT_STOP}, 1, "a status of its own");
	wl_pass();
}
