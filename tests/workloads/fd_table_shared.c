// SPDX-License-Identifier: Apache-2.0
/* A child that shares its parent's descriptor table (CLONE_FILES), and a grandchild that has a copy. */
/* wl: */
#include "fd.h"

static int file, both[2];

static void wait_for(int fd, char byte, const char *what)
{
	char got = 0;
	CHECK(read(fd, &got, 1) == 1 && got == byte, "%s: got %d", what, got);
}

int main(void)
{
	wl_begin();
	file = fd_make("file", "0123");
	MUST(lseek(file, 0, SEEK_SET));
	MUST(pipe(both));
	pid_t child = MUST((pid_t)WL_CLONE(CLONE_FILES | SIGCHLD));
	if (!child) {
		MUST(dup2(file, 50)); /* appears in the parent too */
		fd_put(both[1], "r", 1);
		wl_wait();
		CHECK(fcntl(50, F_GETFD) == 0, "child: 50 is gone");
		wait_for(60, '0', "child reads what the parent opened after the restore");
		close(50);
		_exit(0);
	}
	wait_for(both[0], 'r', "child");
	pid_t apart = MUST(fork());
	if (!apart) {
		close(50);
		fd_put(both[1], "r", 1);
		wl_wait();
		CHECK(fcntl(50, F_GETFD) == -1, "grandchild: 50 came back");
		CHECK(fcntl(60, F_GETFD) == -1, "grandchild: shares the table");
		_exit(0);
	}
	wait_for(both[0], 'r', "second child");
	CHECK(fcntl(50, F_GETFD) == 0, "the child's descriptor did not appear");
	wl_ready_wait();
	CHECK(syscall(SYS_kcmp, getpid(), child, KCMP_FILES, 0, 0) == 0, "the table is not shared");
	CHECK(syscall(SYS_kcmp, getpid(), apart, KCMP_FILES, 0, 0) != 0, "the copied table is shared");
	MUST(dup2(file, 60));
	wl_end(apart);
	wl_end(child);
	CHECK(fcntl(50, F_GETFD) == -1, "the child's close is not seen");
	CHECK(lseek(file, 0, SEEK_CUR) == 1, "position is %ld", (long)lseek(file, 0, SEEK_CUR));
	wl_pass();
}
