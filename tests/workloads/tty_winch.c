// SPDX-License-Identifier: Apache-2.0
/* The foreground group of a terminal whose size was set long ago: a restore gives the terminal its size again, and nobody
 * is told that it has changed (SIGWINCH), or editors would draw anew and drop a key. */
/* wl: */
#include "tty.h"

static struct tty tty;
static volatile sig_atomic_t told;

static void handler(int number) { (void)number; told++; }

static void leader(void *argument)
{
	(void)argument;
	close(tty.master);
	MUST(setsid());
	MUST(ioctl(tty.slave, TIOCSCTTY, 0));
	CHECK(tcgetpgrp(tty.slave) == getpid(), "not in the foreground");
	MUST(sigaction(SIGWINCH, &(struct sigaction){.sa_handler = handler}, NULL));
	wl_child_ready_wait();
	CHECK(told == 0, "the size is said to have changed");
	fd_put(tty.slave, "x", 1);
	wl_wait();
	CHECK(told == 1, "the size has changed and nobody says so");
}

int main(void)
{
	struct winsize size = {.ws_row = 31, .ws_col = 97, .ws_xpixel = 5, .ws_ypixel = 6};
	wl_begin();
	tty = tty_make(O_CLOEXEC);
	tty_raw(tty.slave);
	MUST(ioctl(tty.master, TIOCSWINSZ, &size));
	pid_t pid = wl_child(leader, NULL);
	wl_ready_wait();
	tty_same_size(&size, tty.slave, "slave");
	MUST(kill(pid, SIGTERM));
	char byte;
	MUST(read(tty.master, &byte, 1));
	size.ws_col = 80;
	MUST(ioctl(tty.master, TIOCSWINSZ, &size));
	wl_end(pid);
	wl_pass();
}
