// SPDX-License-Identifier: Apache-2.0
/* The memory devices null, zero, full, random and urandom, with flags. */
/* wl: */
#include "fd.h"

int main(void)
{
	static const char *const names[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"};
	struct fd_facts was[10];
	char buffer[64] = {1}, other[64] = {2};
	wl_begin();
	for (int i = 0; i < 5; i++) {
		was[i] = fd_look(MUST(open(names[i], O_RDWR)));
		was[5 + i] = fd_look(MUST(open(names[i], O_RDONLY | O_NONBLOCK | O_CLOEXEC)));
	}
	wl_ready_wait();
	for (int i = 0; i < 10; i++)
		fd_check_inode(&was[i], names[i % 5]);
	fd_put(was[0].fd, "lost", 4);
	fd_expect_end(was[0].fd, "null");
	CHECK(read(was[1].fd, buffer, 64) == 64, "zero: %s", strerror(errno));
	wl_zero(buffer, 64, "zero");
	CHECK(write(was[2].fd, "x", 1) == -1 && errno == ENOSPC, "full takes a byte");
	CHECK(read(was[3].fd, buffer, 64) == 64 && read(was[4].fd, other, 64) == 64, "no random bytes");
	CHECK(memcmp(buffer, other, 64), "random bytes are equal");
	wl_pass();
}
