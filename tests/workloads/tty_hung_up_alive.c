// SPDX-License-Identifier: Apache-2.0
/* A terminal that was hung up for those who had it open, and opened again. */
/* wl: refused=its_terminal_lives_on */
#include "tty.h"

int main(void)
{
	wl_begin();
	struct tty tty = tty_make(0);
	MUST(ioctl(tty.slave, TIOCVHANGUP, 0));
	int again = MUST(open(tty.name, O_RDWR | O_NOCTTY));
	wl_ready_wait();
	CHECK(write(tty.slave, "x", 1) == -1 && errno == EIO, "not hung up");
	tty.slave = again;
	tty_check_pair(&tty);
	wl_pass();
}
