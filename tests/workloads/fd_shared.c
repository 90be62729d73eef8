// SPDX-License-Identifier: Apache-2.0
/* Descriptions shared by dup and by fork share position and flags; a second open of the same file does not. */
/* wl: */
#include "fd.h"

static int one, twin, high, other, only_child;

static void child(void *argument)
{
	(void)argument;
	close(twin);
	only_child = MUST(dup3(one, 77, O_CLOEXEC));
	wl_child_ready_wait();
	CHECK(lseek(one, 0, SEEK_CUR) == 6, "child: position is %ld", (long)lseek(one, 0, SEEK_CUR));
	CHECK(fd_same(one, only_child) && fd_same(one, high), "child: duplicates are apart");
	CHECK(!fd_same(one, other), "child: two opens are one");
	CHECK(fd_one_description(getpid(), one, getppid(), one), "child: not the parent's description");
	CHECK(fd_one_description(getpid(), other, getppid(), other), "child: not the parent's other description");
	CHECK(fcntl(only_child, F_GETFD) == FD_CLOEXEC && fcntl(one, F_GETFD) == 0, "child: close-on-exec");
	CHECK(fcntl(twin, F_GETFD) == -1 && errno == EBADF, "child: a closed number came back");
	fd_expect_text(only_child, "67", "child reads on");
}

int main(void)
{
	wl_begin();
	one = fd_make("file", "01234567");
	twin = MUST(dup(one));
	high = MUST(dup2(one, 200));
	other = MUST(open("file", O_RDWR | O_CLOEXEC));
	pid_t pid = wl_child(child, NULL);
	MUST(lseek(one, 4, SEEK_SET));
	MUST(lseek(other, 1, SEEK_SET));
	wl_ready_wait();
	CHECK(fd_same(one, twin) && fd_same(one, high) && !fd_same(one, other), "sharing is not as it was");
	CHECK(fcntl(77, F_GETFD) == -1, "the child's number is in the parent");
	CHECK(lseek(twin, 2, SEEK_CUR) == 6, "position is %ld", (long)lseek(twin, 0, SEEK_CUR));
	wl_end(pid);
	CHECK(lseek(high, 0, SEEK_CUR) == 8, "the child's reading did not move ours");
	MUST(fcntl(one, F_SETFL, O_APPEND));
	CHECK(fcntl(high, F_GETFL) & O_APPEND, "flags are not shared");
	CHECK(!(fcntl(other, F_GETFL) & O_APPEND), "flags are shared with another description");
	CHECK(lseek(other, 0, SEEK_CUR) == 1, "the other's position moved");
	wl_pass();
}
