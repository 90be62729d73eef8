// SPDX-License-Identifier: Apache-2.0
/* System V shared memory, attached by parent and child, one segment already marked for removal. */
/* wl: */
#include "wl.h"

#include <sys/shm.h>

enum { page = WL_PAGE, size = 5 * page };
static char *kept, *doomed;

static void child(void *unused)
{
	(void)unused;
	wl_child_ready_wait();
	wl_same(kept, size, 1, "kept, in the child");
	wl_same(doomed, size, 2, "doomed, in the child");
	wl_fill(kept + page, page, 11);
	_exit(0);
}

int main(void)
{
	struct shmid_ds facts;
	wl_begin();
	key_t key = 0x54520000 + (getpid() & 0xffff);
	int id = MUST(shmget(key, size, IPC_CREAT | IPC_EXCL | 0600));
	wl_say("owns shm %d", id);
	kept = MUST(shmat(id, NULL, 0));
	int gone = MUST(shmget(IPC_PRIVATE, size, 0640));
	doomed = MUST(shmat(gone, NULL, 0));
	char *readonly = MUST(shmat(id, NULL, SHM_RDONLY));
	MUST(shmctl(gone, IPC_RMID, NULL));
	MUST(shmctl(id, IPC_STAT, &facts));
	facts.shm_perm.uid = 100001, facts.shm_perm.gid = 100002;
	MUST(shmctl(id, IPC_SET, &facts));
	wl_fill(kept, size, 1);
	wl_fill(doomed, size, 2);
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	MUST(shmctl(id, IPC_STAT, &facts));
	CHECK(facts.shm_nattch == 4, "%lu attachments, were 4", (unsigned long)facts.shm_nattch);
	CHECK(facts.shm_segsz == size && (facts.shm_perm.mode & 0777) == 0600, "size %zu, mode 0%o", facts.shm_segsz, facts.shm_perm.mode);
	CHECK(facts.shm_perm.uid == 100001 && facts.shm_perm.gid == 100002, "belongs to %d:%d", facts.shm_perm.uid, facts.shm_perm.gid);
	CHECK(shmget(key, 0, 0) == id, "the key leads elsewhere");
	MUST(shmctl(gone, IPC_STAT, &facts));
	CHECK(facts.shm_perm.mode & SHM_DEST, "no longer marked for removal");
	wl_end(pid);
	wl_same(kept + page, page, 11, "the child's store");
	wl_same(readonly + page, page, 11, "the child's store, in the read-only attachment");
	wl_same(doomed, size, 2, "doomed");
	MUST(shmdt(doomed));
	CHECK(shmctl(gone, IPC_STAT, &facts) == -1, "the doomed segment outlives its last attachment");
	MUST(shmdt(readonly));
	MUST(shmdt(kept));
	MUST(shmctl(id, IPC_RMID, NULL));
	wl_pass();
}
