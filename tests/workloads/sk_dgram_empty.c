// SPDX-License-Identifier: Apache-2.0
/* Queued messages of no bytes, before and after others. */
/* wl: */
#include "sk.h"

int main(void)
{
	static const int types[] = {SOCK_DGRAM, SOCK_SEQPACKET};
	int pairs[2][2];
	wl_begin();
	for (int i = 0; i < 2; i++) {
		MUST(socketpair(AF_UNIX, types[i] | SOCK_NONBLOCK, 0, pairs[i]));
		MUST(send(pairs[i][0], "", 0, 0));
		fd_put(pairs[i][0], "between", 7);
		MUST(send(pairs[i][0], "", 0, 0));
	}
	wl_ready_wait();
	for (int i = 0; i < 2; i++) {
		fd_expect_end(pairs[i][1], "first empty message");
		fd_expect_text(pairs[i][1], "between", "message between");
		fd_expect_end(pairs[i][1], "last empty message");
		fd_expect_error(pairs[i][1], EAGAIN, "the end");
	}
	wl_pass();
}
