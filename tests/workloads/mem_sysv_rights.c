// SPDX-License-Identifier: Apache-2.0
/* System V shared memory: what an attachment may become (mprotect), and a segment that is locked (SHM_LOCK). */
/* wl: */
#include "wl.h"

#include <sys/shm.h>

enum { page = WL_PAGE, size = 5 * page };

int main(void)
{
	struct shmid_ds facts;
	wl_begin();
	int id = MUST(shmget(IPC_PRIVATE, size, 0600));
	wl_say("owns shm %d", id);
	char *closed = MUST(shmat(id, NULL, 0)), *readonly = MUST(shmat(id, NULL, SHM_RDONLY)), *none = MUST(shmat(id, NULL, 0));
	char *again = MUST(shmat(id, NULL, SHM_EXEC));
	wl_fill(closed, size, 1);
	MUST(mprotect(closed, size, PROT_READ));
	MUST(mprotect(none, size, PROT_NONE));
	MUST(shmctl(id, SHM_LOCK, NULL));
	wl_ready_wait();
	wl_same(readonly, size, 1, "read-only");
	wl_same(again, size, 1, "executable");
	EXPECT(mprotect(readonly, size, PROT_READ | PROT_WRITE) == -1, "the read-only attachment can be written");
	EXPECT(mprotect(closed, size, PROT_READ | PROT_WRITE) == 0, "the closed attachment cannot be opened any more: %s", strerror(errno));
	EXPECT(mprotect(none, size, PROT_READ | PROT_WRITE) == 0, "the hidden attachment cannot be opened any more: %s", strerror(errno));
	MUST(shmctl(id, IPC_STAT, &facts));
	EXPECT(facts.shm_perm.mode & SHM_LOCKED, "no longer locked: mode 0%o", facts.shm_perm.mode);
	EXPECT(facts.shm_nattch == 4, "%lu attachments, were 4", (unsigned long)facts.shm_nattch);
	MUST(shmctl(id, IPC_RMID, NULL));
	wl_pass();
}
