// SPDX-License-Identifier: Apache-2.0
/* Threads, and yet no table of futexes of the process's own, by its wish (PR_FUTEX_HASH with 0 slots, Linux 6.16). */
/* wl: */
#include "wl.h"

enum { FUTEX_HASH = 78, SET_SLOTS = 1, GET_SLOTS = 2 };

static void *thread(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(void)
{
	pthread_t other;
	wl_begin();
	if (prctl(FUTEX_HASH, (long)SET_SLOTS, 0L, 0L, 0L))
		wl_skip("no tables of one's own: %s", strerror(errno));
	MUST0(pthread_create(&other, NULL, thread, NULL));
	wl_ready_wait();
	int slots = prctl(FUTEX_HASH, (long)GET_SLOTS, 0L, 0L, 0L);
	EXPECT(slots == 0, "%d slots, were none", slots);
	wl_pass();
}
