// SPDX-License-Identifier: Apache-2.0
/* A thread that is an I/O flusher (PR_SET_IO_FLUSHER) where the process is none. */
/* wl: refused=I/O_flusher */
#include "thread.h"

enum { SET_IO_FLUSHER = 57, GET_IO_FLUSHER = 58 };

static int change(void) { return prctl(SET_IO_FLUSHER, 1L, 0L, 0L, 0L) ? errno : 0; }
static void check(void) { CHECK(prctl(GET_IO_FLUSHER, 0L, 0L, 0L, 0L) == 1, "no longer an I/O flusher"); }
