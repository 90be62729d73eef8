// SPDX-License-Identifier: Apache-2.0
/* F_SETOWN, F_SETOWN_EX, F_SETSIG and O_ASYNC: who gets which signal when a file becomes readable. */
/* wl: */
#include "fd.h"
#include <sys/socket.h>

static int pair[2], thread_pipe[2], group_pipe[2], file, fifo;

static void check_owner(int fd, int type, pid_t pid, int signal, const char *what)
{
	struct f_owner_ex owner;
	MUST(fcntl(fd, F_GETOWN_EX, &owner));
	CHECK((int)owner.type == type && owner.pid == pid, "%s: owner is %d/%d, was %d/%d", what, owner.type, owner.pid, type, pid);
	int now = MUST(fcntl(fd, F_GETSIG));
	CHECK(now == signal, "%s: signal is %d, was %d", what, now, signal);
}

int main(void)
{
	sigset_t set = wl_set(SIGRTMIN + 3);
	siginfo_t info;
	wl_begin();
	sigaddset(&set, SIGIO);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(pipe(thread_pipe));
	MUST(pipe(group_pipe));
	file = fd_make("file", "x");
	MUST(fcntl(pair[0], F_SETOWN, getpid()));
	MUST(fcntl(pair[0], F_SETSIG, SIGRTMIN + 3));
	MUST(fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK));
	struct f_owner_ex thread = {F_OWNER_TID, (pid_t)syscall(SYS_gettid)};
	MUST(fcntl(thread_pipe[0], F_SETOWN_EX, &thread));
	MUST(fcntl(thread_pipe[0], F_SETFL, O_ASYNC));
	MUST(fcntl(group_pipe[0], F_SETOWN, -getpgrp()));
	MUST(fcntl(file, F_SETOWN, getpid()));
	MUST(mkfifo("fifo", 0600));
	fifo = MUST(open("fifo", O_RDWR));
	MUST(fcntl(fifo, F_SETOWN, getpid()));
	MUST(fcntl(fifo, F_SETSIG, SIGRTMIN + 3));
	wl_ready_wait();
	check_owner(pair[0], F_OWNER_PID, getpid(), SIGRTMIN + 3, "socket");
	check_owner(thread_pipe[0], F_OWNER_TID, getpid(), 0, "pipe of a thread");
	check_owner(group_pipe[0], F_OWNER_PGRP, getpgrp(), 0, "pipe of a group");
	check_owner(file, F_OWNER_PID, getpid(), 0, "file");
	check_owner(fifo, F_OWNER_PID, getpid(), SIGRTMIN + 3, "FIFO");
	CHECK(sigtimedwait(&set, &info, &(struct timespec){0}) == -1, "signal %d came by itself", info.si_signo);
	fd_put(pair[1], "x", 1);
	CHECK(sigtimedwait(&set, &info, &(struct timespec){5}) == SIGRTMIN + 3, "no signal from the socket");
	CHECK(info.si_fd == pair[0] && info.si_code == POLL_IN, "signal tells fd %d, code %d", info.si_fd, info.si_code);
	fd_put(thread_pipe[1], "x", 1);
	CHECK(sigtimedwait(&set, &info, &(struct timespec){5}) == SIGIO, "no signal from the pipe");
	wl_pass();
}
