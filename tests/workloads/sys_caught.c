// SPDX-License-Identifier: Apache-2.0
/* Signals with handlers that wait for threads inside system calls while these are away.  A stopped process has them: it
 * goes on when it is restored, each thread's handler runs, and its call
 * - fails with EINTR if the handler was set without SA_RESTART, or if it is a call that is never made again (signal(7)),
 * - is made again otherwise, and gets what it waits for;
 * - does not end, and no handler runs before it does, if the thread blocks the signal, unless the call itself lets it in
 *   (ppoll). */
/* wl: timeout=100 same=no */
/* not compared: a stopped thread shows the mask that ppoll has set; it gets its own back, and calls ppoll again */
#include "wl.h"
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

enum how { PLAIN, RESTART, BLOCKED, hows };
enum kind { AGAIN, ENDS, LETS_IN }; /* made again for SA_RESTART; never; lets the blocked signal in, and ends */

struct thread;
struct kind_of_call {
	const char *name;
	long (*call)(struct thread *);
	enum kind kind;
	bool stays; /* a process that is stopped and continued does not see the call end: it can be tried with a blocked signal */
};
struct thread {
	const struct kind_of_call *what;
	enum how how;
	pthread_t thread;
	pid_t tid, child;
	char path[16];
	int number, word, pipe[2], listener, epoll, over, errno_seen, caught_inside;
	volatile int caught;
	long result;
};
static struct thread *threads; /* shared with the process that sends the signals */
static int count, semaphores;
static __thread struct thread *self;

static sigset_t none;
static long do_read(struct thread *t) { char byte; return syscall(SYS_read, t->pipe[0], &byte, 1L); }
static long do_libc_read(struct thread *t) { char byte; return read(t->pipe[0], &byte, 1); } /* ppc64le: another entry */
static long do_futex(struct thread *t) { return syscall(SYS_futex, &t->word, FUTEX_WAIT_PRIVATE, 0L, NULL, NULL, 0L); }
static long do_wait4(struct thread *t) { return syscall(SYS_wait4, t->child, NULL, 0L, NULL) == t->child ? 0 : -1; }
static long do_accept(struct thread *t) { return syscall(SYS_accept4, t->listener, NULL, NULL, 0L) >= 0 ? 0 : -1; }
static long do_open(struct thread *t) { return open(t->path, O_RDONLY) >= 0 ? 0 : -1; } /* a FIFO that nobody writes to */
static long do_poll(struct thread *t) { return poll(&(struct pollfd){t->pipe[0], POLLIN}, 1, -1); }
static long do_ppoll(struct thread *t) { return syscall(SYS_ppoll, &(struct pollfd){t->pipe[0], POLLIN}, 1L, NULL, &none, 8L); }
static long do_pselect(struct thread *t)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(t->pipe[0], &set);
	return pselect(t->pipe[0] + 1, &set, NULL, NULL, NULL, &none);
}
static long do_select(struct thread *t)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(t->pipe[0], &set);
	return select(t->pipe[0] + 1, &set, NULL, NULL, NULL);
}
static long do_epoll(struct thread *t) { return epoll_wait(t->epoll, &(struct epoll_event){}, 1, -1); }
static long do_epoll_pwait(struct thread *t) { return epoll_pwait(t->epoll, &(struct epoll_event){}, 1, -1, &none); }
static long do_semop(struct thread *t) { return semop(semaphores, &(struct sembuf){t->number, -1, 0}, 1); }
static long do_recv_timed(struct thread *t) { char byte; return recv(t->pipe[0], &byte, 1, 0); }
static long do_pause(struct thread *t) { (void)t; return pause(); }
static long do_sigsuspend(struct thread *t) { (void)t; return sigsuspend(&none); }
static long do_nanosleep(struct thread *t) { (void)t; return syscall(SYS_nanosleep, &(struct timespec){600, 0}, NULL); }
static long do_sleep_until(struct thread *t)
{
	struct timespec end;
	(void)t;
	MUST(clock_gettime(CLOCK_MONOTONIC, &end));
	end.tv_sec += 600;
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, (long)TIMER_ABSTIME, &end, NULL);
}
static long do_sigtimedwait(struct thread *t)
{
	sigset_t set = wl_set(SIGRTMIN + 1);
	(void)t;
	return syscall(SYS_rt_sigtimedwait, &set, NULL, &(struct timespec){600, 0}, 8L);
}

static const struct kind_of_call calls[] = {
	{"read", do_read, AGAIN, true},
	{"the C library's read", do_libc_read, AGAIN, true},
	{"futex", do_futex, AGAIN, true},
	{"wait4", do_wait4, AGAIN, true},
	{"accept", do_accept, AGAIN, true},
	{"open of a FIFO", do_open, AGAIN, true},
	{"poll", do_poll, ENDS, true},
	{"select", do_select, ENDS, true},
	{"epoll_wait", do_epoll, ENDS, false},
	{"semop", do_semop, ENDS, false},
#ifndef __aarch64__ /* where not every kernel tells which socket it was, and nobody makes that call again */
	{"recv of a socket with a timeout", do_recv_timed, ENDS, false},
#endif
	{"pause", do_pause, ENDS, false},
	{"nanosleep", do_nanosleep, ENDS, false},
	{"clock_nanosleep until", do_sleep_until, ENDS, false},
	{"sigtimedwait", do_sigtimedwait, ENDS, false},
	{"ppoll", do_ppoll, LETS_IN, true},
	{"pselect", do_pselect, LETS_IN, true},
	{"epoll_pwait", do_epoll_pwait, LETS_IN, true},
	{"sigsuspend", do_sigsuspend, LETS_IN, true},
};
enum { kinds = sizeof calls / sizeof calls[0] };

static void handler(int number)
{
	(void)number;
	self->caught++;
}

static void *body(void *argument)
{
	self = argument;
	sigset_t ours = none;
	sigaddset(&ours, SIGUSR1), sigaddset(&ours, SIGUSR2);
	MUST0(pthread_sigmask(self->how == BLOCKED ? SIG_BLOCK : SIG_UNBLOCK, &ours, NULL));
	__atomic_store_n(&self->tid, gettid(), __ATOMIC_SEQ_CST);
	self->result = self->what->call(self);
	self->errno_seen = errno;
	self->caught_inside = self->caught;
	MUST0(pthread_sigmask(SIG_UNBLOCK, &ours, NULL)); /* no signal is lost */
	__atomic_store_n(&self->over, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void prepare(struct thread *t)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (t->what->call == do_recv_timed) {
		MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, t->pipe));
		MUST(setsockopt(t->pipe[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){600, 0}, sizeof(struct timeval)));
	} else {
		MUST(pipe(t->pipe));
	}
	if (t->what->call == do_accept) {
		snprintf(address.sun_path, sizeof address.sun_path, "socket%d", t->number);
		t->listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(bind(t->listener, (struct sockaddr *)&address, sizeof address));
		MUST(listen(t->listener, 1));
	} else if (t->what->call == do_open) {
		snprintf(t->path, sizeof t->path, "fifo%d", t->number);
		MUST(mkfifo(t->path, 0600));
	} else if (t->what->call == do_epoll || t->what->call == do_epoll_pwait) {
		t->epoll = MUST(epoll_create1(0));
		MUST(epoll_ctl(t->epoll, EPOLL_CTL_ADD, t->pipe[0], &(struct epoll_event){.events = EPOLLIN}));
	} else if (t->what->call == do_wait4) {
		pid_t child = MUST(fork()); /* not at once into memory that the child shares */
		if (child == 0) {
			close(wl_child_pipe[1]); /* so that the parent's parent notices if it fails */
			wl_wait();
			_exit(0);
		}
		t->child = child;
	}
	MUST0(pthread_create(&t->thread, NULL, body, t));
}

/* What the call waits for; what waits for nothing gets a signal. */
static void feed(struct thread *t)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct sembuf up = {t->number, 1, 0};
	if (t->what->call == do_accept) {
		snprintf(address.sun_path, sizeof address.sun_path, "socket%d", t->number);
		MUST(connect(MUST(socket(AF_UNIX, SOCK_STREAM, 0)), (struct sockaddr *)&address, sizeof address));
	} else if (t->what->call == do_open) {
		MUST(open(t->path, O_WRONLY));
	} else if (t->what->call == do_wait4) {
		MUST(kill(t->child, SIGTERM));
	} else if (t->what->call == do_semop) {
		MUST(semop(semaphores, &up, 1));
	} else if (t->what->call == do_futex) {
		for (t->word = 1; !t->over; usleep(1000)) /* it may not wait yet */
			MUST(syscall(SYS_futex, &t->word, FUTEX_WAKE_PRIVATE, 100L, NULL, NULL, 0L));
	} else {
		MUST(write(t->pipe[1], "x", 1));
	}
	for (int i = 0; i < 50 && !t->over; i++)
		usleep(i < 40 ? 1000 : 100000);
	for (int i = 0; i < 5000 && !t->over; i++)
		pthread_kill(t->thread, SIGUSR1), usleep(1000);
}

static bool sleeps(pid_t tid, const char *wanted)
{
	return strchr(wanted, wl_state(tid)) != NULL;
}

static void check(const struct thread *t)
{
	static const char *const words[] = {"without SA_RESTART", "with SA_RESTART", "blocked"};
	bool ended = t->result == -1 && t->errno_seen == EINTR;
	bool ends = t->what->kind == LETS_IN || (t->how != BLOCKED && (t->what->kind == ENDS || t->how == PLAIN));
	CHECK(ended == ends, "%s, signal %s: gives %ld (%s)", t->what->name, words[t->how], t->result, t->result == -1 ? strerror(t->errno_seen) : "no error");
	int handlers = t->how == BLOCKED && t->what->kind != LETS_IN ? 0 : 1;
#ifdef __aarch64__
	/* The stop ends it already, and its first argument is gone then: it cannot be made again, to let the signal in. */
	if (t->what->call != do_epoll_pwait)
#endif
	CHECK(t->caught_inside == handlers, "%s, signal %s: its handler ran %d times in it", t->what->name, words[t->how],
	      t->caught_inside);
	CHECK(t->caught == 1, "%s, signal %s: its handler ran %d times", t->what->name, words[t->how], t->caught);
}

static void victim(void *argument)
{
	int told = *(int *)argument;
	char byte;
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler}, NULL));
	MUST(sigaction(SIGUSR2, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART}, NULL));
	sigset_t ours = none;
	sigaddset(&ours, SIGUSR1), sigaddset(&ours, SIGUSR2);
	MUST0(pthread_sigmask(SIG_BLOCK, &ours, NULL));
	for (int i = 0; i < count; i++)
		prepare(&threads[i]);
	for (int i = 0; i < count; i++)
		while (!__atomic_load_n(&threads[i].tid, __ATOMIC_SEQ_CST) || !sleeps(threads[i].tid, "S"))
			usleep(1000);
	wl_child_ready();
	MUST(read(told, &byte, 1));
	/* Handlers have run, or never will; whoever's call goes on is in it again. */
	for (int i = 0, tries = 0; i < count; i++)
		for (; tries < 5000 && !threads[i].over; tries++, usleep(1000))
			if ((threads[i].caught || threads[i].how == BLOCKED) && tries > 20 && sleeps(threads[i].tid, "S"))
				break;
	for (int i = 0; i < count; i++)
		if (!threads[i].over)
			feed(&threads[i]);
	for (int i = 0; i < count; i++)
		MUST0(pthread_join(threads[i].thread, NULL));
	for (int i = 0; i < count; i++)
		check(&threads[i]);
	for (int i = 0; i < count; i++)
		if (threads[i].what->call == do_wait4)
			kill(threads[i].child, SIGKILL);
	_exit(0);
}

int main(void)
{
	int tell[2], status;
	wl_begin();
	threads = MUST(mmap(NULL, kinds * hows * sizeof *threads, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < kinds; i++)
		for (int how = 0; how < hows; how++)
			if (calls[i].kind == LETS_IN ? how == BLOCKED : how != BLOCKED || calls[i].stays) {
				threads[count] = (struct thread){.what = &calls[i], .how = how, .number = count};
				count++;
			}
	semaphores = MUST(semget(IPC_PRIVATE, count, 0600));
	wl_say("owns sem %d", semaphores);
	MUST(pipe(tell));
	pid_t pid = wl_child(victim, &tell[0]);
	MUST(kill(pid, SIGSTOP));
	MUST(waitpid(pid, &status, WUNTRACED));
	CHECK(WIFSTOPPED(status), "the victim ended with 0x%x", status);
	for (int i = 0; i < count; i++) {
		while (!sleeps(threads[i].tid, "Tt"))
			usleep(1000);
		MUST((int)syscall(SYS_tgkill, pid, threads[i].tid, threads[i].how == RESTART ? SIGUSR2 : SIGUSR1));
	}
	wl_ready_wait();
	MUST(kill(pid, SIGCONT));
	MUST(write(tell[1], "x", 1));
	wl_reap(pid);
	MUST(semctl(semaphores, 0, IPC_RMID));
	wl_pass();
}
