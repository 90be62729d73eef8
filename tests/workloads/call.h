// SPDX-License-Identifier: Apache-2.0
/* What the system calls wait for that are caught in the middle: pipes, a listener, System V objects, a child. */
#ifndef CALL_H
#define CALL_H
#include "wl.h"
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>

static int pipes[8][2], epoll, listener, queue, semaphore;
static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
static pid_t child;

static int64_t now(clockid_t clock)
{
	struct timespec t;
	MUST(clock_gettime(clock, &t));
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* `small`: number of the pipe that is to be full soon; the epoll instance waits for pipe `source`; the child ends with 7. */
static void call_prepare(int small, int source, uint64_t data, int backlog)
{
	for (int i = 0; i < 8; i++)
		MUST(pipe(pipes[i]));
	MUST(fcntl(pipes[small][1], F_SETPIPE_SZ, 65536)); /* with pages of 64 KiB it holds a megabyte, and no write would wait */
	epoll = MUST(epoll_create1(0));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[source][0], &(struct epoll_event){.events = EPOLLIN, .data.u64 = data}));
	listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(listener, (const struct sockaddr *)&address, sizeof address));
	MUST(listen(listener, backlog));
	queue = MUST(msgget(IPC_PRIVATE, 0600));
	wl_say("owns msg %d", queue);
	semaphore = MUST(semget(IPC_PRIVATE, 1, 0600));
	wl_say("owns sem %d", semaphore);
	child = MUST(fork());
	if (child == 0) {
		wl_wait();
		_exit(7);
	}
}

static void call_remove(void)
{
	MUST(msgctl(queue, IPC_RMID, NULL));
	MUST(semctl(semaphore, 0, IPC_RMID));
}
#endif
