// SPDX-License-Identifier: Apache-2.0
/* Sessions and process groups: groups led by members and joined by siblings, a session inside the tree with two groups. */
/* wl: */
#include "wl.h"

static void stay(const char *what)
{
	pid_t group = getpgrp(), session = getsid(0);
	wl_child_ready_wait();
	CHECK(getpgrp() == group, "%s: process group is %d, was %d", what, getpgrp(), group);
	CHECK(getsid(0) == session, "%s: session is %d, was %d", what, getsid(0), session);
	_exit(0);
}

static void joiner(void *group)
{
	MUST(setpgid(0, (pid_t)(intptr_t)group));
	stay("joined a group");
}

static void leader(void *unused)
{
	(void)unused;
	MUST(setpgid(0, 0));
	stay("leads a group");
}

static void plain(void *unused)
{
	(void)unused;
	stay("plain");
}

static void session(void *unused)
{
	(void)unused;
	int told = wl_child_pipe[1];
	MUST(setsid());
	pid_t group = getpgrp(), sid = getsid(0);
	pid_t one = wl_child(plain, NULL);
	pid_t two = wl_child(leader, NULL);
	pid_t three = wl_child(joiner, (void *)(intptr_t)two);
	wl_child_pipe[1] = told;
	wl_child_ready_wait();
	CHECK(getpgrp() == group && getsid(0) == sid && sid == getpid(), "session leader: group %d, session %d", getpgrp(), getsid(0));
	CHECK(getpgid(three) == two && getsid(three) == sid, "third member: group %d, session %d", getpgid(three), getsid(three));
	wl_end(three);
	wl_end(two);
	wl_end(one);
	_exit(0);
}

int main(void)
{
	wl_begin();
	pid_t pids[4];
	pids[0] = wl_child(leader, NULL);
	pids[1] = wl_child(joiner, (void *)(intptr_t)pids[0]);
	pids[2] = wl_child(session, NULL);
	pids[3] = wl_child(joiner, (void *)(intptr_t)pids[0]);
	wl_ready_wait();
	CHECK(getsid(0) == getpid() && getpgrp() == getpid(), "root: group %d, session %d", getpgrp(), getsid(0));
	for (int i = 3; i >= 0; i--)
		wl_end(pids[i]);
	wl_pass();
}
