// SPDX-License-Identifier: Apache-2.0
/* Memory of a child that begins where its parent has other memory: neither comes back as the other's, also in what the
 * kernel accounts for. */
/* wl: */
#include "wl.h"

enum { page = WL_PAGE, length = 16 * page };
enum area { WRITTEN, NEVER, UNRESERVED, SHORTER, areas };
static char *at[areas];

static char *map(int which, int protection, int flags)
{
	return MUST(mmap(at[which], length, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0));
}

static void child(void *argument)
{
	(void)argument;
	map(WRITTEN, PROT_NONE, 0);
	wl_fill(map(NEVER, PROT_READ | PROT_WRITE, 0), page, 11); /* accounted for from here on */
	MUST(mprotect(at[NEVER], length, PROT_NONE));
	map(UNRESERVED, PROT_NONE, 0);
	map(SHORTER, PROT_READ, 0);
	MUST(munmap(at[SHORTER] + 4 * page, length - 4 * page));
	wl_child_ready_wait();
	wl_zero(at[SHORTER], 4 * page, "memory that was never written to");
	for (int i = WRITTEN; i <= UNRESERVED; i++)
		MUST(mprotect(at[i], length, PROT_READ | PROT_WRITE));
	wl_zero(at[WRITTEN], length, "memory that nobody could access, where the parent has written");
	wl_same(at[NEVER], page, 11, "memory that nobody can access any more");
	wl_zero(at[UNRESERVED], length, "memory that nobody could access, where the parent's has no reserve");
	_exit(0);
}

int main(void)
{
	wl_begin();
	for (int i = 0; i < areas; i++) /* with room between them, so that none becomes one with another */
		at[i] = (char *)MUST(mmap(NULL, 2 * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < areas; i++)
		MUST(munmap(at[i] + length, length));
	wl_fill(map(WRITTEN, PROT_READ | PROT_WRITE, 0), length, 1);
	map(NEVER, PROT_NONE, 0);
	wl_fill(map(UNRESERVED, PROT_READ | PROT_WRITE, MAP_NORESERVE), length, 2);
	wl_fill(map(SHORTER, PROT_READ | PROT_WRITE, 0), length, 3);
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	wl_same(at[WRITTEN], length, 1, "the parent's memory");
	wl_same(at[UNRESERVED], length, 2, "the parent's memory without reserve");
	wl_same(at[SHORTER], length, 3, "the parent's memory, longer than the child's");
	wl_end(pid);
	wl_pass();
}
