// SPDX-License-Identifier: Apache-2.0
/* A job of a shell, with a child: its terminal is its standard input, the master and the session's leader are outside. */
/* wl: opts=--shell-job terminal=yes */
#include "tty.h"

static pid_t top;

static void check_terminal(const char *who)
{
	CHECK(getpgrp() == top, "%s: process group is %d, was %d", who, getpgrp(), top);
	CHECK(tcgetsid(0) == getsid(0), "%s: the terminal's session is %d, mine is %d", who, tcgetsid(0), getsid(0));
	int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
	CHECK(tty != -1, "%s: no controlling terminal: %s", who, strerror(errno));
	CHECK(tcgetpgrp(tty) == tcgetpgrp(0), "%s: two terminals", who);
	close(tty);
}

static void child(void *argument)
{
	(void)argument;
	wl_child_ready_wait();
	check_terminal("child");
}

int main(void)
{
	wl_begin();
	CHECK(isatty(0), "standard input is no terminal");
	CHECK(getsid(0) != getpid(), "leads its session");
	top = getpid();
	CHECK(getpgrp() == top, "leads no process group");
	int again = MUST(dup(0));
	struct termios termios = tty_termios(0);
	termios.c_cc[VINTR] = 2;
	termios.c_iflag |= IUTF8;
	termios.c_lflag &= ~(tcflag_t)(ECHOE | TOSTOP);
	signal(SIGTTOU, SIG_IGN);
	MUST(tcsetattr(0, TCSANOW, &termios));
	termios = tty_termios(0);
	pid_t pid = wl_child(child, NULL);
	struct fd_facts was = fd_look(0);
	wl_ready_wait();
	CHECK(isatty(0), "standard input is no terminal any more");
	fd_check(&was, "standard input");
	CHECK(fd_same(0, again) && fd_one_description(getpid(), 0, pid, 0), "duplicates are apart");
	check_terminal("parent");
	tty_same_termios(&termios, 0, "terminal");
	wl_end(pid);
	wl_pass();
}
