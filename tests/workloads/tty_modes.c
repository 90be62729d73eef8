// SPDX-License-Identifier: Apache-2.0
/* Packet mode, a slave that is still locked, a master without a slave. */
/* wl: */
#include "tty.h"

int main(void)
{
	int on = 1, value, number;
	char name[40];
	wl_begin();
	struct tty packet = tty_make(0), other = tty_make(0);
	tty_raw(packet.slave);
	MUST(ioctl(packet.master, TIOCPKT, &on));
	int locked = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY)), alone = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
	MUST(ioctl(alone, TIOCSPTLCK, &(int){0}));
	MUST(ioctl(locked, TIOCGPTN, &number));
	struct winsize size = {11, 22, 0, 0};
	MUST(ioctl(alone, TIOCSWINSZ, &size));
	wl_ready_wait();
	tty_check_pair(&packet);
	tty_check_pair(&other);
	MUST(ioctl(packet.master, TIOCGPKT, &value));
	CHECK(value == 1, "packet mode is %d", value);
	MUST(ioctl(other.master, TIOCGPKT, &value));
	CHECK(value == 0, "packet mode of another is %d", value);
	MUST(ioctl(locked, TIOCGPTLCK, &value));
	CHECK(value == 1, "the slave is not locked any more");
	MUST(ioctl(alone, TIOCGPTLCK, &value));
	CHECK(value == 0, "the slave is locked");
	tty_same_size(&size, alone, "master alone");
	MUST(ioctl(locked, TIOCGPTN, &value));
	CHECK(value == number, "terminal number is %d, was %d", value, number);
	snprintf(name, sizeof name, "/dev/pts/%d", number);
	CHECK(open(name, O_RDWR | O_NOCTTY) == -1 && errno == EIO, "a locked slave can be opened");
	fd_put(packet.slave, "x", 1);
	fd_expect(packet.master, "\0x", 2, "packet");
	MUST(tcflush(packet.slave, TCIFLUSH));
	fd_expect(packet.master, (char[]){TIOCPKT_FLUSHREAD}, 1, "flush told in packet mode");
	wl_pass();
}
