// SPDX-License-Identifier: Apache-2.0
/* A thread with a memory policy of its own. */
/* wl: refused=has_a_memory_policy */
#include "thread.h"

enum { INTERLEAVE = 3 };

static int change(void)
{
	unsigned long nodes = 1;
	return syscall(SYS_set_mempolicy, INTERLEAVE, &nodes, 8 * sizeof nodes) ? errno : 0;
}

static void check(void)
{
	int now = 0;
	MUST((int)syscall(SYS_get_mempolicy, &now, NULL, 0, NULL, 0));
	CHECK(now == INTERLEAVE, "the policy is %d", now);
}
