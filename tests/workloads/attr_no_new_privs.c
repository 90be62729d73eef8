// SPDX-License-Identifier: Apache-2.0
/* no_new_privs of a whole process: it can never be taken off, so who is not to have it must not get it. */
/* wl: */
#include "wl.h"

static void child(void *set)
{
	if (set)
		MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	wl_child_ready_wait();
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == (set != NULL), "no_new_privs is %d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	_exit(0);
}

int main(void)
{
	wl_begin();
	pid_t with = wl_child(child, (void *)1), without = wl_child(child, NULL);
	wl_ready_wait();
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "the root has it");
	wl_end(with);
	wl_end(without);
	wl_pass();
}
