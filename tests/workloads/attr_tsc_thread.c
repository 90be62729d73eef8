// SPDX-License-Identifier: Apache-2.0
/* A thread that may not read the time stamp counter, though the others may. */
#include "thread.h"

static int change(void) { return prctl(PR_SET_TSC, PR_TSC_SIGSEGV) ? errno : 0; }

static void check(void)
{
	int now = 0;
	MUST(prctl(PR_GET_TSC, &now));
	CHECK(now == PR_TSC_SIGSEGV, "the time stamp counter may be read");
	MUST(prctl(PR_SET_TSC, PR_TSC_ENABLE));
}
