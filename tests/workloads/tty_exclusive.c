// SPDX-License-Identifier: Apache-2.0
/* A terminal in exclusive mode (TIOCEXCL): nobody but root opens it again, so also not before a restore has put it back. */
/* wl: */
#include "tty.h"
#ifndef TIOCGEXCL
#define TIOCGEXCL 0x80045440
#endif

int main(void)
{
	int value;
	wl_begin();
	struct tty exclusive = tty_make(0), usual = tty_make(0);
	int again = MUST(open(exclusive.name, O_RDWR | O_NOCTTY));
	MUST(ioctl(exclusive.slave, TIOCEXCL));
	wl_ready_wait();
	tty_check_pair(&exclusive);
	tty_check_pair(&usual);
	MUST(ioctl(exclusive.slave, TIOCGEXCL, &value));
	CHECK(value == 1, "exclusive mode is %d", value);
	MUST(ioctl(again, TIOCGEXCL, &value));
	CHECK(value == 1, "exclusive mode is %d", value);
	MUST(ioctl(usual.slave, TIOCGEXCL, &value));
	CHECK(value == 0, "exclusive mode of another is %d", value);
	wl_pass();
}
