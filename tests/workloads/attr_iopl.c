// SPDX-License-Identifier: Apache-2.0
/* A thread that may use all I/O ports (iopl). */
/* wl: refused=has_permission_for_all_I/O_ports_(iopl) */
#include "thread.h"
#ifdef __x86_64__
#include <sys/io.h>

static int change(void)
{
	return iopl(3) ? errno : 0;
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
