// SPDX-License-Identifier: Apache-2.0
/* membarrier registrations, which later commands need: private, global, with core sync and rseq. */
/* wl: */
#include "wl.h"

enum { QUERY = 0, GLOBAL_EXPEDITED = 2, REGISTER_GLOBAL = 4, PRIVATE = 8, REGISTER_PRIVATE = 16, SYNC_CORE = 32, REGISTER_SYNC_CORE = 64, RSEQ = 128, REGISTER_RSEQ = 256, GET_REGISTRATIONS = 512 };

static long barrier(int command) { return syscall(SYS_membarrier, command, 0, 0); }

static void child(void *argument)
{
	long command = (long)argument;
	if (command && barrier((int)command))
		CHECK(errno == EINVAL, "membarrier(%ld): %s", command, strerror(errno));
	long was = barrier(GET_REGISTRATIONS), works[3] = {barrier(PRIVATE), barrier(SYNC_CORE), barrier(RSEQ)};
	wl_child_ready_wait();
	CHECK(barrier(GET_REGISTRATIONS) == was, "registrations are %lx, were %lx", barrier(GET_REGISTRATIONS), was);
	CHECK(barrier(PRIVATE) == works[0] && barrier(SYNC_CORE) == works[1] && barrier(RSEQ) == works[2], "registered for %ld: commands work otherwise", command);
	_exit(0);
}

int main(void)
{
	static const long kinds[] = {0, REGISTER_GLOBAL, REGISTER_PRIVATE, REGISTER_SYNC_CORE, REGISTER_RSEQ};
	pid_t pids[5];
	wl_begin();
	if (barrier(QUERY) < 0)
		wl_skip("no membarrier");
	for (int i = 0; i < 5; i++)
		pids[i] = wl_child(child, (void *)kinds[i]);
	wl_ready_wait();
	for (int i = 0; i < 5; i++)
		wl_end(pids[i]);
	wl_pass();
}
