// SPDX-License-Identifier: Apache-2.0
/* O_PATH descriptors of terminals: of the tree's own, of the multiplexer, and of /dev/tty. */
/* wl: */
#include "tty.h"
#include <sys/sysmacros.h>

int main(void)
{
	wl_begin();
	struct tty tty = tty_make(0);
	int slave = MUST(open(tty.name, O_PATH)), master = MUST(open("/dev/ptmx", O_PATH)), own = MUST(open("/dev/tty", O_PATH));
	char path[40], name[40];
	wl_ready_wait();
	tty_check_pair(&tty);
	CHECK(fcntl(slave, F_GETFL) & O_PATH, "no O_PATH descriptor any more");
	snprintf(path, sizeof path, "/proc/self/fd/%d", slave);
	int again = MUST(open(path, O_RDWR | O_NOCTTY));
	CHECK(!ttyname_r(again, name, sizeof name) && !strcmp(name, tty.name), "it is %s, was %s", name, tty.name);
	struct stat stat;
	MUST(fstat(master, &stat));
	CHECK(stat.st_rdev == makedev(5, 2), "another multiplexer");
	MUST(fstat(own, &stat));
	CHECK(stat.st_rdev == makedev(5, 0), "another /dev/tty");
	wl_pass();
}
