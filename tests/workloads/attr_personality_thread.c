// SPDX-License-Identifier: Apache-2.0
/* A thread with a personality of its own. */
#include "thread.h"

#include <sys/personality.h>

static int change(void) { return personality(ADDR_COMPAT_LAYOUT) == -1 ? errno : 0; }
static void check(void) { CHECK(personality(0xFFFFFFFF) == ADDR_COMPAT_LAYOUT, "the personality is %x", personality(0xFFFFFFFF)); }
