// SPDX-License-Identifier: Apache-2.0
/* Lines that were typed and not read: ended by end of file, by another character, with newlines within; and one begun. */
/* wl: */
#include "tty.h"

static char found[4096];

/* All lines that can be read, each with a bar behind it. */
static void collect(int fd)
{
	char line[500];
	ssize_t n;
	while (strlen(found) < 3000 && (n = read(fd, line, sizeof line)) >= 0)
		snprintf(found + strlen(found), sizeof found - strlen(found), "%.*s|", (int)n, line);
	CHECK(errno == EAGAIN, "read: %s", strerror(errno));
}

int main(void)
{
	wl_begin();
	struct tty tty = tty_make(O_NONBLOCK);
	struct termios termios = tty_termios(tty.slave);
	static const char keys[] = "one\ntwo\4\4semi;th\26\nree\n\26\4four\nfi";
	termios.c_lflag &= ~(tcflag_t)ECHO;
	termios.c_cc[VEOL] = ';';
	MUST(tcsetattr(tty.slave, TCSANOW, &termios));
	fd_put(tty.master, keys, sizeof keys - 1);
	MUST(poll(&(struct pollfd){.fd = tty.slave, .events = POLLIN}, 1, 5000));
	usleep(20000);
	wl_ready_wait();
	tty_same_termios(&termios, tty.slave, "slave");
	collect(tty.slave);
	fd_put(tty.master, "X\177ve\n", 5);
	poll(&(struct pollfd){.fd = tty.slave, .events = POLLIN}, 1, 1000);
	collect(tty.slave);
	CHECK(!strcmp(found, "one\n|two||semi;|th\nree\n|\4four\n|five\n|"), "other lines than were typed");
	wl_pass();
}
