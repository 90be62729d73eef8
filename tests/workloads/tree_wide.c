// SPDX-License-Identifier: Apache-2.0
/* 50 processes (5 in guests): children of one parent, each with memory of its own. */
/* wl: */
#include "wl.h"

enum { most = 49, length = 5 * WL_PAGE };

static void body(void *argument)
{
	uint64_t seed = (uint64_t)(intptr_t)argument;
	pid_t parent = getppid();
	char *memory = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(memory, length, seed);
	wl_child_ready_wait();
	wl_same(memory, length, seed, "a child's memory");
	CHECK(getppid() == parent, "parent is %d, was %d", getppid(), parent);
	_exit(0);
}

int main(void)
{
	pid_t pids[most];
	wl_begin();
	int children = wl_many(most);
	for (int i = 0; i < children; i++)
		pids[i] = wl_child(body, (void *)(intptr_t)(i + 100));
	wl_ready_wait();
	for (int i = 0; i < children; i++)
		wl_end(pids[i]);
	wl_pass();
}
