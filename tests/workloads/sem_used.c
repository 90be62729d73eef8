// SPDX-License-Identifier: Apache-2.0
/* System V semaphores without SEM_UNDO belong to nobody: a process that has used one, and a child that waits for it, are
 * dumped, and it is outside of them. */
/* wl: */
#include "wl.h"

#include <sys/ipc.h>
#include <sys/sem.h>

static int id;

static void operate(int by)
{
	struct sembuf step = {0, (short)by, 0};
	while (semop(id, &step, 1))
		CHECK(errno == EINTR, "semop: %s", strerror(errno));
}

static void waiter(void *unused)
{
	(void)unused;
	wl_child_ready();
	operate(-1);
	_exit(0);
}

int main(void)
{
	wl_begin();
	id = MUST(semget(IPC_PRIVATE, 1, 0600));
	wl_say("owns sem %d", id);
	operate(1);
	operate(-1);
	pid_t child = wl_child(waiter, NULL);
	wl_ready_wait();
	operate(1);
	wl_reap(child);
	MUST(semctl(id, 0, IPC_RMID));
	wl_pass();
}
