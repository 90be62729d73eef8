// SPDX-License-Identifier: Apache-2.0
/* Processes that were stopped where a handler returned into the call that it had ended: that call fails with EINTR, or
 * is made again where the handler was set with SA_RESTART.  Their registers look as if the stop had ended it. */
/* wl: */
#include "wl.h"
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/socket.h>

struct call {
	const char *name;
	long (*make)(void);
	int signal; /* SIGUSR1: handled, the call ends; SIGUSR2: with SA_RESTART, it is made again */
};
static int pair[2], epoll, semaphores;
static volatile sig_atomic_t caught;

static long do_read(void) { char byte; return syscall(SYS_read, pair[0], &byte, 1L); }
static long do_libc_read(void) { char byte; return read(pair[0], &byte, 1); } /* ppc64le: another entry */
static long do_recv_timed(void) { char byte; return recv(pair[1], &byte, 1, 0); }
static long do_poll(void) { return poll(&(struct pollfd){pair[0], POLLIN}, 1, -1); }
static long do_epoll(void) { return epoll_wait(epoll, &(struct epoll_event){}, 1, -1); }
static long do_raw_epoll(void) { return syscall(SYS_epoll_pwait, epoll, &(struct epoll_event){}, 1L, -1L, NULL, 8L); }
static long do_semop(void) { return semop(semaphores, &(struct sembuf){0, -1, 0}, 1); }
static long do_nanosleep(void) { return syscall(SYS_nanosleep, &(struct timespec){600, 0}, NULL); }
static long do_sigtimedwait(void)
{
	sigset_t set = wl_set(SIGRTMIN + 1);
	return syscall(SYS_rt_sigtimedwait, &set, NULL, &(struct timespec){600, 0}, 8L);
}

static const struct call calls[] = {
	{"read", do_read, SIGUSR1},
	{"read, made again", do_read, SIGUSR2},
	{"the C library's read", do_libc_read, SIGUSR1},
	{"the C library's read, made again", do_libc_read, SIGUSR2},
	{"recv with a time limit", do_recv_timed, SIGUSR1},
	{"poll", do_poll, SIGUSR1},
	{"epoll_wait", do_epoll, SIGUSR1},
	{"epoll_pwait", do_raw_epoll, SIGUSR1},
	{"semop", do_semop, SIGUSR1},
	{"nanosleep", do_nanosleep, SIGUSR1},
	{"sigtimedwait", do_sigtimedwait, SIGUSR1},
};
enum { COUNT = sizeof calls / sizeof calls[0] };

static void handler(int number)
{
	int saved = errno;
	(void)number;
	caught++;
	raise(SIGTSTP); /* blocked until the handler has returned */
	errno = saved;
}

static void victim(void *argument)
{
	const struct call *call = argument;
	sigset_t none = wl_set(SIGTERM);
	epoll = MUST(epoll_create1(0));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &(struct epoll_event){.events = EPOLLIN}));
	MUST(sigprocmask(SIG_SETMASK, &none, NULL));
	wl_child_ready();
	long result = call->make();
	if (call->signal == SIGUSR1)
		CHECK(result == -1 && errno == EINTR, "%s gives %ld (%s)", call->name, result, strerror(errno));
	else
		CHECK(result == 1, "%s gives %ld (%s)", call->name, result, strerror(errno));
	CHECK(caught == 1, "%s: the handler has run %d times", call->name, caught);
	wl_wait();
	_exit(0);
}

static void await(pid_t pid, char state)
{
	while (wl_state(pid) != state)
		usleep(1000);
}

int main(void)
{
	struct sigaction action = {.sa_handler = handler, .sa_mask = wl_set(SIGTSTP)};
	pid_t pids[COUNT];
	int feed[COUNT];
	wl_begin();
	MUST(sigaction(SIGUSR1, &action, NULL));
	action.sa_flags = SA_RESTART;
	MUST(sigaction(SIGUSR2, &action, NULL));
	semaphores = MUST(semget(IPC_PRIVATE, 1, 0600));
	wl_say("owns sem %d", semaphores);
	for (int i = 0; i < COUNT; i++) {
		MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		MUST(setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){600, 0}, sizeof(struct timeval)));
		feed[i] = pair[1];
		pids[i] = wl_child(victim, (void *)&calls[i]);
		MUST(setpgid(pids[i], 0)); /* a group of its own can be stopped by SIGTSTP */
		await(pids[i], 'S');
		MUST(kill(pids[i], calls[i].signal));
		await(pids[i], 'T');
	}
	wl_ready_wait();
	for (int i = 0; i < COUNT; i++) {
		MUST(kill(pids[i], SIGCONT));
		if (calls[i].signal == SIGUSR2)
			MUST(write(feed[i], "x", 1));
		wl_end(pids[i]);
	}
	MUST(semctl(semaphores, 0, IPC_RMID));
	wl_pass();
}
