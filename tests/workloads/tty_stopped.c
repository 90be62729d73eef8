// SPDX-License-Identifier: Apache-2.0
/* Terminals whose output is stopped, by ^S and by tcflow(3), with and without data in them. */
/* wl: */
#include "tty.h"

enum { key, call, key_data, call_data, count };
static const char *const names[] = {"key", "call", "key, with data", "call, with data"};

static bool can_write(int fd)
{
	struct pollfd poller = {.fd = fd, .events = POLLOUT};
	MUST(poll(&poller, 1, 0));
	return poller.revents & POLLOUT;
}

int main(void)
{
	struct tty ttys[count];
	wl_begin();
	for (int i = 0; i < count; i++) {
		struct tty *tty = &ttys[i];
		*tty = tty_make(O_NONBLOCK);
		struct termios termios = tty_termios(tty->slave);
		termios.c_lflag &= ~(tcflag_t)ECHO;
		MUST(tcsetattr(tty->slave, TCSANOW, &termios));
		if (i >= key_data) {
			fd_put(tty->slave, "shown", 5);
			fd_put(tty->master, "typed\n", 6);
			MUST(poll(&(struct pollfd){.fd = tty->slave, .events = POLLIN}, 1, 5000));
		}
		if (i == key || i == key_data)
			fd_put(tty->master, "\23", 1);
		else
			MUST(tcflow(tty->slave, TCOOFF));
		for (int n = 0; n < 5000 && can_write(tty->slave); n++)
			usleep(1000);
		CHECK(!can_write(tty->slave), "%s: not stopped at the start", names[i]);
	}
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		struct tty *tty = &ttys[i];
		CHECK(!can_write(tty->slave), "%s: goes on", names[i]);
		if (i == call || i == call_data) {
			fd_put(tty->master, "\21", 1); /* ^Q does not start it */
			usleep(20000);
			CHECK(!can_write(tty->slave), "%s: started by a key", names[i]);
			MUST(tcflow(tty->slave, TCOON));
		} else {
			MUST(tcflow(tty->slave, TCOON)); /* which does not start it */
			CHECK(!can_write(tty->slave), "%s: started by a call", names[i]);
			fd_put(tty->master, "\21", 1);
		}
		for (int n = 0; n < 5000 && !can_write(tty->slave); n++)
			usleep(1000);
		CHECK(can_write(tty->slave), "%s: cannot be started", names[i]);
		if (i >= key_data) {
			fd_expect_text(tty->master, "shown", names[i]);
			fd_expect_text(tty->slave, "typed\n", names[i]);
		}
		tty_check_pair(tty);
	}
	wl_pass();
}
