// SPDX-License-Identifier: Apache-2.0
/* The switch that turns huge pages off for a process (PR_SET_THP_DISABLE), inherited by one child, not the other. */
/* wl: */
#include "wl.h"

static void child(void *argument)
{
	int was = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	(void)argument;
	wl_child_ready_wait();
	int now = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	CHECK(now == was, "THP_DISABLE is %d, was %d", now, was);
	_exit(0);
}

int main(void)
{
	wl_begin();
	pid_t without = wl_child(child, NULL);
	MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	pid_t with = wl_child(child, NULL);
	wl_ready_wait();
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1, "THP_DISABLE is lost");
	wl_end(with);
	wl_end(without);
	wl_pass();
}
