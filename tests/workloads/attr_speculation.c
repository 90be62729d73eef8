// SPDX-License-Identifier: Apache-2.0
/* A thread with speculation controls of its own. */
/* wl: refused=has_speculation_controls_of_its_own */
#include "thread.h"

static int change(void) { return prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0) ? errno : 0; }

static void check(void)
{
	int now = prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0);
	CHECK(now == (PR_SPEC_PRCTL | PR_SPEC_DISABLE), "speculation control is %d", now);
}
