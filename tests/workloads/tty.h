// SPDX-License-Identifier: Apache-2.0
/* What the terminal workloads share. */
#ifndef TTY_H
#define TTY_H
#include "fd.h"
#include <pty.h>
#include <termios.h>

struct tty {
	int master, slave, number;
	char name[40];
};

static WL_UNUSED struct tty tty_make(int flags)
{
	struct tty tty = {.master = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY | flags))};
	int unlocked = 0;
	MUST(ioctl(tty.master, TIOCSPTLCK, &unlocked));
	MUST(ioctl(tty.master, TIOCGPTN, &tty.number));
	snprintf(tty.name, sizeof tty.name, "/dev/pts/%d", tty.number);
	tty.slave = MUST(open(tty.name, O_RDWR | O_NOCTTY | flags));
	return tty;
}

/* No echo, no translation, byte by byte. */
static WL_UNUSED void tty_raw(int fd)
{
	struct termios termios;
	MUST(tcgetattr(fd, &termios));
	cfmakeraw(&termios);
	MUST(tcsetattr(fd, TCSANOW, &termios));
}

static WL_UNUSED struct termios tty_termios(int fd)
{
	struct termios termios;
	memset(&termios, 0, sizeof termios);
	MUST(tcgetattr(fd, &termios));
	return termios;
}

static WL_UNUSED void tty_same_termios(const struct termios *was, int fd, const char *what)
{
	struct termios now = tty_termios(fd);
	CHECK(now.c_iflag == was->c_iflag && now.c_oflag == was->c_oflag && now.c_cflag == was->c_cflag && now.c_lflag == was->c_lflag,
	      "%s: modes are %#o %#o %#o %#o, were %#o %#o %#o %#o", what, now.c_iflag, now.c_oflag, now.c_cflag, now.c_lflag,
	      was->c_iflag, was->c_oflag, was->c_cflag, was->c_lflag);
	CHECK(now.c_line == was->c_line, "%s: line discipline %d, was %d", what, now.c_line, was->c_line);
	for (int i = 0; i < 19; i++)
		CHECK(now.c_cc[i] == was->c_cc[i], "%s: control character %d is %d, was %d", what, i, now.c_cc[i], was->c_cc[i]);
}

static WL_UNUSED void tty_same_size(const struct winsize *was, int fd, const char *what)
{
	struct winsize now;
	MUST(ioctl(fd, TIOCGWINSZ, &now));
	CHECK(!memcmp(&now, was, sizeof now), "%s: size is %dx%d (%dx%d), was %dx%d (%dx%d)", what, now.ws_row, now.ws_col, now.ws_xpixel,
	      now.ws_ypixel, was->ws_row, was->ws_col, was->ws_xpixel, was->ws_ypixel);
}

/* The master still leads to the slave of the same number. */
static WL_UNUSED void tty_check_pair(const struct tty *tty)
{
	int number = -1;
	char path[40], link[80] = "";
	MUST(ioctl(tty->master, TIOCGPTN, &number));
	CHECK(number == tty->number, "terminal number is %d, was %d", number, tty->number);
	snprintf(path, sizeof path, "/proc/self/fd/%d", tty->slave);
	MUST(readlink(path, link, sizeof link - 1));
	CHECK(!strcmp(link, tty->name), "slave is %s, was %s", link, tty->name);
}

#endif
