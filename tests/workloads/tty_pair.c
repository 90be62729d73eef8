// SPDX-License-Identifier: Apache-2.0
/* Pseudo-terminals of which both ends are held: number, termios, window size, flags, a slave opened twice. */
/* wl: */
#include "tty.h"

int main(void)
{
	struct winsize size = {33, 101, 640, 480}, size2 = {0, 0, 0, 0};
	wl_begin();
	struct tty one = tty_make(O_NONBLOCK), two = tty_make(O_CLOEXEC), three = tty_make(0);
	int again = MUST(open(one.name, O_RDONLY | O_NOCTTY));
	int twin = MUST(dup(one.master));
	struct termios termios = tty_termios(one.slave);
	termios.c_iflag = IXON | ICRNL | IUTF8 | BRKINT;
	termios.c_oflag = OPOST | ONLCR | TAB3;
	termios.c_lflag = ISIG | ICANON | ECHO | ECHOE | NOFLSH | TOSTOP;
	termios.c_cc[VINTR] = 1;
	termios.c_cc[VERASE] = 8;
	termios.c_cc[VSWTC] = 77;
	termios.c_cc[VWERASE] = 78;
	termios.c_cc[VEOL2] = 79;
	cfsetspeed(&termios, B9600);
	MUST(tcsetattr(one.slave, TCSANOW, &termios));
	MUST(ioctl(one.slave, TIOCSWINSZ, &size));
	tty_raw(two.slave);
	struct termios was_one = tty_termios(one.slave), was_two = tty_termios(two.slave), was_three = tty_termios(three.slave);
	int fds[] = {one.master, one.slave, two.master, two.slave, three.master, three.slave, again};
	struct fd_facts was[7];
	for (int i = 0; i < 7; i++)
		was[i] = fd_look(fds[i]);
	wl_ready_wait();
	for (int i = 0; i < 7; i++)
		fd_check(&was[i], (const char *[]){"master 1", "slave 1", "master 2", "slave 2", "master 3", "slave 3", "again"}[i]);
	tty_check_pair(&one);
	tty_check_pair(&two);
	tty_check_pair(&three);
	tty_same_termios(&was_one, one.slave, "first");
	tty_same_termios(&was_one, one.master, "first, from its master");
	tty_same_termios(&was_two, two.slave, "second");
	tty_same_termios(&was_three, three.slave, "third");
	tty_same_size(&size, one.slave, "first");
	tty_same_size(&size, one.master, "first, from its master");
	tty_same_size(&size2, two.slave, "second");
	CHECK(fd_same(one.master, twin), "duplicates are apart");
	CHECK(!fd_same(one.slave, again), "two opens are one");
	fd_put(two.master, "typed", 5);
	fd_expect_text(two.slave, "typed", "second slave");
	fd_put(two.slave, "shown", 5);
	fd_expect_text(two.master, "shown", "second master");
	fd_put(one.master, "line\n", 5);
	fd_expect_text(again, "line\n", "first slave");
	fd_expect_text(one.master, "line\r\n", "echo");
	wl_pass();
}
