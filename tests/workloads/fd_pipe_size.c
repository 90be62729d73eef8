// SPDX-License-Identifier: Apache-2.0
/* Pipes of other sizes (F_SETPIPE_SZ), one of them full to the brim. */
/* wl: */
#include "fd.h"

int main(void)
{
	enum { small = WL_PAGE, large = 1 << 20 };
	int full[2], big[2], untouched[2];
	static char data[large], now[large];
	wl_begin();
	MUST(pipe2(full, O_NONBLOCK));
	MUST(pipe2(big, O_NONBLOCK));
	MUST(pipe(untouched));
	CHECK(fcntl(full[0], F_SETPIPE_SZ, small) == small, "F_SETPIPE_SZ: %s", strerror(errno));
	CHECK(fcntl(big[0], F_SETPIPE_SZ, large) == large, "F_SETPIPE_SZ: %s", strerror(errno));
	int usual = MUST(fcntl(untouched[0], F_GETPIPE_SZ));
	wl_fill(data, large, 5);
	fd_put(full[1], data, small);
	CHECK(write(full[1], "x", 1) == -1 && errno == EAGAIN, "the pipe is not full");
	fd_put(big[1], data, 300000);
	wl_ready_wait();
	CHECK(fcntl(full[1], F_GETPIPE_SZ) == small, "small pipe has %d bytes", fcntl(full[1], F_GETPIPE_SZ));
	CHECK(fcntl(big[1], F_GETPIPE_SZ) == large, "large pipe has %d bytes", fcntl(big[1], F_GETPIPE_SZ));
	CHECK(fcntl(untouched[1], F_GETPIPE_SZ) == usual, "usual pipe has %d bytes", fcntl(untouched[1], F_GETPIPE_SZ));
	CHECK(write(full[1], "x", 1) == -1 && errno == EAGAIN, "the pipe is not full any more");
	fd_expect(full[0], data, small, "full pipe");
	for (int got = 0; got < 300000;) {
		ssize_t n = MUST(read(big[0], now + got, sizeof now - (size_t)got));
		got += (int)n;
	}
	CHECK(!memcmp(now, data, 300000), "large pipe holds other bytes");
	fd_expect_error(big[0], EAGAIN, "large pipe");
	fd_put(big[1], data, 900000); /* the room is there */
	wl_pass();
}
