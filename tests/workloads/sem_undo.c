// SPDX-License-Identifier: Apache-2.0
/* A System V semaphore that is held with SEM_UNDO: at its end the kernel gives it back, and whoever is restored would
 * believe to hold it.  Refused; one that is used without SEM_UNDO is none of a process's own. */
/* wl: refused=it_was_the_last_to_operate_semaphore_2 */
#include "wl.h"

#include <sys/ipc.h>
#include <sys/sem.h>

static void operate(int id, int number, int by, int flags)
{
	struct sembuf step = {(unsigned short)number, (short)by, (short)flags};
	MUST(semop(id, &step, 1));
}

int main(void)
{
	wl_begin();
	int id = MUST(semget(IPC_PRIVATE, 3, 0600));
	wl_say("owns sem %d", id);
	operate(id, 0, 5, 0);
	operate(id, 2, 1, 0);
	operate(id, 2, -1, SEM_UNDO);
	wl_ready_wait();
	CHECK(semctl(id, 0, GETVAL) == 5 && semctl(id, 2, GETVAL) == 0, "the semaphores are %d and %d", semctl(id, 0, GETVAL),
	      semctl(id, 2, GETVAL));
	operate(id, 2, 1, SEM_UNDO);
	MUST(semctl(id, 0, IPC_RMID));
	wl_pass();
}
