// SPDX-License-Identifier: Apache-2.0
/* A thread that may use an I/O port (ioperm). */
/* wl: refused=has_permission_for_I/O_ports_(ioperm) */
#include "thread.h"
#ifdef __x86_64__
#include <sys/io.h>

static int change(void)
{
	return ioperm(0x80, 1, 1) ? errno : 0;
}

static void check(void)
{
	inb(0x80);
}
#else
static int change(void)
{
	return ENOSYS;
}

static void check(void)
{
}
#endif
