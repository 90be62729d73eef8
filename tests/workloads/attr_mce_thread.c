// SPDX-License-Identifier: Apache-2.0
/* A thread with a policy for memory errors of its own. */
#include "thread.h"

static int change(void) { return prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0) ? errno : 0; }
static void check(void) { CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_LATE, "the policy is %d", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0)); }
