// SPDX-License-Identifier: Apache-2.0
/* Processes that share one descriptor table (clone with CLONE_FILES): one opens, the other sees it. */
/* wl: */
#include "wl.h"

static int shared_null = -1;

int main(void)
{
	wl_begin();
	int told[2], one = MUST(open("/dev/null", O_RDWR));
	MUST(pipe2(told, O_CLOEXEC));
	pid_t child = (pid_t)MUST(WL_CLONE(CLONE_FILES | SIGCHLD));
	if (child == 0) {
		shared_null = MUST(fcntl(one, F_DUPFD, 100)); /* appears in the parent, too */
		MUST(write(told[1], &shared_null, sizeof shared_null));
		wl_wait();
		/* the parent has closed it meanwhile */
		CHECK(fcntl(shared_null, F_GETFD) == -1 && errno == EBADF, "the table is no longer shared: the child still has fd %d", shared_null);
		CHECK(MUST(fcntl(one, F_DUPFD, 200)) == 200, "200 was free");
		_exit(0);
	}
	MUST(read(told[0], &shared_null, sizeof shared_null));
	close(told[0]);
	close(told[1]); /* in both */
	wl_ready_wait();
	CHECK(syscall(SYS_kcmp, getpid(), child, 2 /* KCMP_FILES */, 0, 0) == 0, "kcmp: two tables");
	CHECK(fcntl(shared_null, F_GETFD) == 0, "fd %d is lost", shared_null);
	MUST(close(shared_null));
	wl_end(child);
	CHECK(fcntl(200, F_GETFD) == 0, "what the child opened did not appear here");
	wl_pass();
}
