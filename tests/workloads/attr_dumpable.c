// SPDX-License-Identifier: Apache-2.0
/* Whether core dumps are made and others of the same user may look (dumpable): set to 0 and 1, and lost by setuid. */
/* wl: */
#include "wl.h"

static void child(void *argument)
{
	intptr_t kind = (intptr_t)argument;
	if (kind == 2) {
		MUST((int)syscall(SYS_setresgid, 1000, 1000, 1000));
		MUST((int)syscall(SYS_setresuid, 1000, 1000, 1000)); /* becomes what fs.suid_dumpable says */
	} else
		MUST(prctl(PR_SET_DUMPABLE, kind, 0, 0, 0));
	int was = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
	wl_child_ready_wait();
	CHECK(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == was, "dumpable is %d, was %d", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), was);
	_exit(0);
}

int main(void)
{
	pid_t pids[3];
	wl_begin();
	if (getuid() != 0)
		wl_skip("needs root");
	for (intptr_t i = 0; i < 3; i++)
		pids[i] = wl_child(child, (void *)i);
	wl_ready_wait();
	CHECK(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 1, "dumpable is %d, was 1", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
	for (int i = 0; i < 3; i++)
		wl_end(pids[i]);
	wl_pass();
}
