// SPDX-License-Identifier: Apache-2.0
/* Orphans: the root is a child subreaper and has inherited grandchildren, one of which is a subreaper itself. */
/* wl: */
#include "wl.h"

static int report[2];

static void orphan(int subreaper)
{
	if (subreaper)
		MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t self = getpid();
	MUST(write(report[1], &self, sizeof self));
	close(report[0]);
	close(report[1]);
	wl_wait();
	int now = -1;
	MUST(prctl(PR_GET_CHILD_SUBREAPER, &now));
	CHECK(now == subreaper, "child subreaper is %d, was %d", now, subreaper);
	_exit(0);
}

int main(void)
{
	pid_t orphans[3], parent = getpid();
	wl_begin();
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	for (int i = 0; i < 3; i++) {
		MUST(pipe(report));
		pid_t middle = MUST(fork());
		if (middle == 0) {
			if (MUST(fork()) == 0)
				orphan(i == 1);
			_exit(0);
		}
		wl_reap(middle);
		MUST(read(report[0], &orphans[i], sizeof orphans[i]));
		close(report[0]);
		close(report[1]);
	}
	wl_ready_wait();
	CHECK(getpid() == parent, "pid is %d, was %d", getpid(), parent);
	int now = 0;
	MUST(prctl(PR_GET_CHILD_SUBREAPER, &now));
	CHECK(now == 1, "no child subreaper any more");
	/* it still works: an orphan made now comes to us */
	MUST(pipe(report));
	pid_t middle = MUST(fork()), late;
	if (middle == 0) {
		if (MUST(fork()) == 0)
			orphan(0);
		_exit(0);
	}
	wl_reap(middle);
	MUST(read(report[0], &late, sizeof late));
	wl_end(late);
	for (int i = 0; i < 3; i++)
		wl_end(orphans[i]); /* they are our children */
	wl_pass();
}
