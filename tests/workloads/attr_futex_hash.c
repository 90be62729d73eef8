// SPDX-License-Identifier: Apache-2.0
/* The process's own table of futexes, with as many slots as it asked for (PR_FUTEX_HASH, Linux 6.16). */
/* wl: */
#include "wl.h"

enum { FUTEX_HASH = 78, SET_SLOTS = 1, GET_SLOTS = 2 };

int main(void)
{
	wl_begin();
	if (prctl(FUTEX_HASH, (long)SET_SLOTS, 64L, 0L, 0L))
		wl_skip("no tables of one's own: %s", strerror(errno));
	int slots = MUST(prctl(FUTEX_HASH, (long)GET_SLOTS, 0L, 0L, 0L));
	CHECK(slots == 64, "%d slots", slots);
	wl_ready_wait();
	slots = MUST(prctl(FUTEX_HASH, (long)GET_SLOTS, 0L, 0L, 0L));
	EXPECT(slots == 64, "%d slots, were 64", slots);
	wl_pass();
}
