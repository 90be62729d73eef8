// SPDX-License-Identifier: Apache-2.0
/* Tagged addresses of aarch64: a thread may hand the kernel pointers with something in their top byte, another may not. */
/* wl: */
#include "wl.h"
#ifdef __aarch64__
#ifndef PR_SET_TAGGED_ADDR_CTRL
#define PR_SET_TAGGED_ADDR_CTRL 55
#define PR_GET_TAGGED_ADDR_CTRL 56
#endif

static char buffer[8] = "tagged";

/* Whether the kernel takes a tagged pointer. */
static bool accepted(void)
{
	int ends[2];
	MUST(pipe(ends));
	bool done = write(ends[1], (char *)((uintptr_t)buffer | 0x5aul << 56), sizeof buffer) == sizeof buffer;
	close(ends[0]);
	close(ends[1]);
	return done;
}

int main(void)
{
	wl_begin();
	pid_t child = MUST(fork());
	if (!child) {
		wl_wait();
		CHECK(prctl(PR_GET_TAGGED_ADDR_CTRL, 0, 0, 0, 0) == 0 && !accepted(), "tagged pointers are allowed, and were not");
		_exit(0);
	}
	if (prctl(PR_SET_TAGGED_ADDR_CTRL, 1, 0, 0, 0))
		wl_skip("no tagged addresses: %s", strerror(errno));
	CHECK(accepted(), "a tagged pointer is not taken");
	wl_ready_wait();
	CHECK(prctl(PR_GET_TAGGED_ADDR_CTRL, 0, 0, 0, 0) == 1, "it is %d", prctl(PR_GET_TAGGED_ADDR_CTRL, 0, 0, 0, 0));
	CHECK(accepted(), "a tagged pointer is not taken any more");
	wl_end(child);
	wl_say("exercised: tagged addresses");
	wl_pass();
}
#else
int main(void) { wl_skip("tagged addresses are aarch64's"); }
#endif
