// SPDX-License-Identifier: Apache-2.0
/* A chain of 30 processes (6 in guests), each the only child of the one before. */
/* wl: */
#include "wl.h"

static void link_in(void *argument)
{
	int depth = (int)(intptr_t)argument;
	int told = wl_child_pipe[1];
	pid_t child = 0, self = getpid(), parent = getppid();
	if (depth < wl_many(30))
		child = wl_child(link_in, (void *)(intptr_t)(depth + 1));
	wl_child_pipe[1] = told;
	wl_child_ready();
	pid_t sender = wl_wait();
	CHECK(getpid() == self, "depth %d: pid is %d, was %d", depth, getpid(), self);
	CHECK(getppid() == parent, "depth %d: parent is %d, was %d", depth, getppid(), parent);
	CHECK(sender == parent, "depth %d: SIGTERM came from %d, not from the parent %d", depth, sender, parent);
	if (child)
		wl_end(child);
	_exit(0);
}

int main(void)
{
	wl_begin();
	pid_t child = wl_child(link_in, (void *)1);
	wl_ready_wait();
	wl_end(child);
	wl_pass();
}
