// SPDX-License-Identifier: Apache-2.0
/* System calls caught in the middle, one in each thread.  Which end with EINTR where nobody sent a signal?
 * - Never: calls that the kernel restarts (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND).
 * - Only in a restored process: relative sleeps and futexes with a relative timeout, whose state is in the kernel and
 *   lost.  A process that goes on after a dump must not see it.
 * - Not even those that the kernel ends with EINTR whenever a tracer stops their task, never to restart them:
 *   epoll_wait, sigtimedwait, semop, sockets with a time limit.  Nor poll.  All these have ended so in images of CRIU's
 *   own; Torpor begins them again, from those too where these still have the call's arguments (x86_64, ppc64le).
 * Sleeps must not end early in any case.  The verdict names every call that has ended so: which is first is chance. */
/* wl: same=no */
/* not compared: a sleep until a certain time is over when images are restored late, and its thread has ended */
#include "call.h"
#include <sys/select.h>

enum { NEVER, RESTORED, ANY };
static int sockets[2];
static volatile int word;
static unsigned long long started;
static volatile sig_atomic_t released;

static unsigned long long start_time(void)
{
	char text[1024] = "";
	int file = MUST(open("/proc/self/stat", O_RDONLY | O_CLOEXEC)); /* no stdio: malloc would map new areas */
	MUST(read(file, text, sizeof text - 1));
	close(file);
	char *at = strrchr(text, ')') + 2;
	for (int i = 3; i < 22; i++)
		at = strchr(at, ' ') + 1;
	return strtoull(at, NULL, 10);
}

static void expect_byte(int fd)
{
	char byte = 0;
	CHECK(read(fd, &byte, 1) == 1 && byte == 'x', "another byte");
}

/* Calls that not every architecture has, or has under another name. */
static long system_poll(struct pollfd *p, int timeout)
{
#ifdef SYS_poll
	return syscall(SYS_poll, p, 1L, (long)timeout);
#else
	struct timespec t = {timeout / 1000, 0};
	return syscall(SYS_ppoll, p, 1L, timeout < 0 ? NULL : &t, NULL, 8L);
#endif
}
static long system_select(int count, fd_set *set, struct timeval *t)
{
#if defined SYS__newselect /* ppc64le has both names, and only this one works */
	return syscall(SYS__newselect, (long)count, set, NULL, NULL, t);
#elif defined SYS_select
	return syscall(SYS_select, (long)count, set, NULL, NULL, t);
#else
	struct timespec precise = {t->tv_sec, 0};
	return syscall(SYS_pselect6, (long)count, set, NULL, NULL, &precise, NULL);
#endif
}
static long system_semop(int id, struct sembuf *op)
{
#ifdef SYS_semop
	return syscall(SYS_semop, (long)id, op, 1L);
#else
	return syscall(SYS_semtimedop, (long)id, op, 1L, NULL);
#endif
}
static long system_pause(void)
{
#ifdef SYS_pause
	return syscall(SYS_pause);
#else
	return syscall(SYS_ppoll, NULL, 0L, NULL, NULL, 8L);
#endif
}

static long do_read(void) { char byte; long n = syscall(SYS_read, pipes[0][0], &byte, 1L); return n == 1 && byte == 'x' ? 0 : n == -1 ? -1 : n + 100; }
static long do_poll(void) { struct pollfd p = {pipes[1][0], POLLIN, 0}; long n = system_poll(&p, 600000); return n == 1 ? 0 : n == -1 ? -1 : n + 100; }
static long do_poll_forever(void) { struct pollfd p = {pipes[1][0], POLLIN, 0}; long n = system_poll(&p, -1); return n == 1 ? 0 : n == -1 ? -1 : n + 100; }
static long do_ppoll(void) { struct pollfd p = {pipes[2][0], POLLIN, 0}; struct timespec t = {600, 0}; long n = syscall(SYS_ppoll, &p, 1L, &t, NULL, 8L); return n == 1 ? 0 : n == -1 ? -1 : n + 100; }
static long do_select(void)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(pipes[3][0], &set);
	struct timeval t = {600, 0};
	long n = system_select(pipes[3][0] + 1, &set, &t);
	return n == 1 && FD_ISSET(pipes[3][0], &set) ? 0 : n == -1 ? -1 : n + 100;
}
static long do_pselect(void)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(pipes[3][0], &set);
	struct { const sigset_t *set; size_t size; } mask = {NULL, 8};
	long n = syscall(SYS_pselect6, pipes[3][0] + 1L, &set, NULL, NULL, NULL, &mask);
	return n == 1 && FD_ISSET(pipes[3][0], &set) ? 0 : n == -1 ? -1 : n + 100;
}
static long do_epoll(void)
{
	struct epoll_event event;
	long n = syscall(SYS_epoll_pwait, epoll, &event, 1L, -1L, NULL, 8L);
	return n == 1 && event.data.u64 == 0x1234567890 ? 0 : n == -1 ? -1 : n + 100;
}
static long do_epoll_timed(void)
{
	struct epoll_event event;
	long n = syscall(SYS_epoll_pwait, epoll, &event, 1L, 600000L, NULL, 8L);
	return n == 1 && event.data.u64 == 0x1234567890 ? 0 : n == -1 ? -1 : n + 100;
}
static long do_recv_timed(void) { char byte; long n = syscall(SYS_recvfrom, sockets[0], &byte, 1L, 0L, NULL, NULL); return n == 1 && byte == 'x' ? 0 : n == -1 ? -1 : n + 100; }
/* A wait that is begun again (also after SIGCONT) when the word has changed already ends with EAGAIN, as it should. */
static long futex_wait(int operation, const struct timespec *t)
{
	long n = syscall(SYS_futex, &word, operation, 0L, t, NULL, 0xffffffffL);
	return n == -1 && errno == EAGAIN && word ? 0 : n;
}
static long do_futex_until(void)
{
	int64_t end = now(CLOCK_MONOTONIC) + 600000000000LL;
	struct timespec t = {end / 1000000000, end % 1000000000};
	return futex_wait(FUTEX_WAIT_BITSET_PRIVATE, &t);
}
static long do_futex(void) { return futex_wait(FUTEX_WAIT_PRIVATE, NULL); }
static long do_futex_timed(void) { struct timespec t = {600, 0}; return futex_wait(FUTEX_WAIT_PRIVATE, &t); }
static long do_wait4(void)
{
	int status = 0;
	long pid = syscall(SYS_wait4, child, &status, 0L, NULL);
	return pid == child && WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : pid == -1 ? -1 : pid;
}
static long do_sigtimedwait(void)
{
	sigset_t set = wl_set(SIGRTMIN + 1);
	struct timespec t = {600, 0};
	siginfo_t info;
	long n = syscall(SYS_rt_sigtimedwait, &set, &info, &t, 8L);
	return n == SIGRTMIN + 1 ? 0 : n == -1 ? -1 : n;
}
static long do_accept(void) { long fd = syscall(SYS_accept4, listener, NULL, NULL, 0L); return fd >= 0 ? close((int)fd) : fd; }
static long do_msgrcv(void)
{
	struct { long type; char text[8]; } message;
	long n = syscall(SYS_msgrcv, queue, &message, 8L, 5L, 0L);
	return n == 3 && !memcmp(message.text, "abc", 3) ? 0 : n == -1 ? -1 : n + 100;
}
static long do_semop(void) { struct sembuf op = {0, -1, 0}; return system_semop(semaphore, &op); }
static long do_semtimedop(void) { struct sembuf op = {0, -1, 0}; struct timespec t = {600, 0}; return syscall(SYS_semtimedop, semaphore, &op, 1L, &t); }
static long do_libc_read(void) { expect_byte(pipes[4][0]); return 0; } /* the C library's read */
static long do_write(void)
{
	static char big[200000];
	static size_t done; /* what an interrupted write has written it says: that is no error */
	while (done < sizeof big) {
		long n = syscall(SYS_write, pipes[5][1], big, sizeof big - done);
		if (n <= 0)
			return n ? n : 100;
		done += (size_t)n;
	}
	return 0;
}
static long do_pause(void)
{
	long n = system_pause();
	return n == -1 && errno == EINTR && released ? 0 : n == -1 && errno == EINTR ? 1 : n;
}
/* Sleeps: from the workload's start for 1.5 s, by each kind of call. */
static long slept(long n, int64_t start, const struct timespec *left)
{
	int64_t took = now(CLOCK_MONOTONIC) - start;
	if (n == 0)
		CHECK(took >= 1500000000, "a sleep of 1.5 s took %" PRId64 " ns", took);
	else if (errno == EINTR && left)
		CHECK(left->tv_sec * 1000000000LL + left->tv_nsec > 1500000000 - took - 5000000 && left->tv_sec <= 1, "%ld.%09ld s are said to be left",
		      left->tv_sec, left->tv_nsec);
	return n;
}
static long do_nanosleep(void)
{
	struct timespec t = {1, 500000000}, left = {9, 9};
	int64_t start = now(CLOCK_MONOTONIC);
	return slept(syscall(SYS_nanosleep, &t, &left), start, &left);
}
static long do_clock_nanosleep(void)
{
	struct timespec t = {1, 500000000}, left = {9, 9};
	int64_t start = now(CLOCK_MONOTONIC);
	return slept(syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0L, &t, &left), start, &left);
}
static long do_clock_nanosleep_until(void)
{
	int64_t start = now(CLOCK_MONOTONIC), end = start + 1500000000;
	struct timespec t = {end / 1000000000, end % 1000000000};
	return slept(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, (long)TIMER_ABSTIME, &t, NULL), start, NULL);
}

static struct {
	const char *name;
	long (*call)(void);
	int interrupted; /* when it may see EINTR */
	pthread_t thread;
	pid_t tid;
	volatile int begun, interruptions, over;
} calls[] = {
	{"read", do_read, NEVER},
	{"poll with a timeout", do_poll, NEVER},
	{"poll without", do_poll_forever, NEVER},
	{"ppoll", do_ppoll, NEVER},
	{"select", do_select, NEVER},
	{"pselect", do_pselect, NEVER},
	{"epoll_wait", do_epoll, NEVER},
	{"futex", do_futex, NEVER},
	{"futex with a timeout", do_futex_timed, RESTORED},
	{"wait4", do_wait4, NEVER},
	{"sigtimedwait", do_sigtimedwait, NEVER},
	{"accept", do_accept, NEVER},
	{"msgrcv", do_msgrcv, NEVER},
	{"semop", do_semop, NEVER},
	{"libc read", do_libc_read, NEVER},
	{"write", do_write, NEVER},
	{"pause", do_pause, NEVER},
	{"nanosleep", do_nanosleep, RESTORED},
	{"clock_nanosleep", do_clock_nanosleep, RESTORED},
	{"clock_nanosleep until", do_clock_nanosleep_until, NEVER},
	{"epoll_wait with a timeout", do_epoll_timed, NEVER},
	{"semtimedop", do_semtimedop, NEVER},
#ifdef __aarch64__ /* not every kernel tells which socket it was */
	{"recv of a socket with a timeout", do_recv_timed, ANY},
#else
	{"recv of a socket with a timeout", do_recv_timed, NEVER},
#endif
	{"futex until", do_futex_until, NEVER},
};
enum { count = sizeof calls / sizeof calls[0] };

static volatile int others_wait, finished;

static bool is_sleep(int i) { return strstr(calls[i].name, "sleep") != NULL; }

/* Until the thread sleeps in its call, or has ended. */
static void await(int i)
{
	char path[64], text[256] = "";
	for (;; usleep(1000)) {
		if (!calls[i].begun)
			continue;
		snprintf(path, sizeof path, "/proc/self/task/%d/stat", calls[i].tid);
		int file = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = file >= 0 ? read(file, text, sizeof text - 1) : 0;
		if (file >= 0)
			close(file);
		if (n <= 0)
			break;
		text[n] = 0;
		if (strrchr(text, ')')[2] == 'S')
			break;
	}
}

static void handler(int number) { (void)number; }

static void *body(void *argument)
{
	int i = (int)(intptr_t)argument;
	long n;
	calls[i].tid = gettid();
	while (is_sleep(i) && !others_wait) /* a slow machine takes longer than the sleep to bring all of them here */
		usleep(1000);
	calls[i].begun = 1;
	while ((n = calls[i].call()) == -1 && errno == EINTR) {
		bool restored = start_time() != started;
		EXPECT(calls[i].interrupted == ANY || (calls[i].interrupted == RESTORED && restored), "%s was interrupted in a process that %s",
		       calls[i].name, restored ? "was restored" : "goes on");
		calls[i].interruptions++;
	}
	CHECK(n == 0, "%s gives %ld (%s)", calls[i].name, n, n == -1 ? strerror(errno) : "");
	calls[i].over = 1;
	while (!finished) /* a sleep may be over before the dump, on a slow machine: whoever looks at threads finds it there */
		poll(NULL, 0, 50);
	return NULL;
}

int main(void)
{
	sigset_t set = wl_set(SIGRTMIN + 1);
	wl_begin();
	started = start_time();
	MUST0(pthread_sigmask(SIG_BLOCK, &set, NULL));
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler}, NULL));
	call_prepare(5, 6, 0x1234567890, 1);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	MUST(setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){600, 0}, sizeof(struct timeval)));
	for (intptr_t i = 0; i < count; i++)
		MUST0(pthread_create(&calls[i].thread, NULL, body, (void *)i));
	for (int i = 0; i < count; i++)
		if (!is_sleep(i))
			await(i);
	others_wait = 1;
	for (int i = 0; i < count; i++)
		if (is_sleep(i))
			await(i);
	wl_ready_wait();
	for (int i = 0; i < count; i++)
		CHECK(!calls[i].over || is_sleep(i), "%s ended by itself", calls[i].name);
	static char sink[200000];
	struct { long type; char text[8]; } message = {5, "abc"};
	struct sembuf up = {0, 2, 0};
	MUST(write(pipes[0][1], "x", 1));
	MUST(write(pipes[1][1], "x", 1));
	MUST(write(pipes[2][1], "x", 1));
	MUST(write(pipes[3][1], "x", 1));
	MUST(write(pipes[4][1], "x", 1));
	MUST(write(pipes[6][1], "x", 1));
	MUST(write(sockets[1], "x", 1));
	word = 1;
	while (!calls[7].over || !calls[8].over || !calls[23].over) /* it may not wait yet */
		MUST(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 100L, NULL, NULL, 0L)), usleep(1000);
	MUST(kill(child, SIGTERM));
	MUST((int)syscall(SYS_tgkill, getpid(), calls[10].tid, SIGRTMIN + 1));
	int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(client, (const struct sockaddr *)&address, sizeof address));
	MUST(msgsnd(queue, &message, 3, 0));
	MUST(semop(semaphore, &up, 1));
	for (size_t got = 0; got < sizeof sink;)
		got += (size_t)MUST(read(pipes[5][0], sink, sizeof sink));
	released = 1;
	for (int i = 0; i < 1000 && !calls[16].over; i++) {
		pthread_kill(calls[16].thread, SIGUSR1);
		usleep(5000);
	}
	finished = 1;
	for (int i = 0; i < count; i++)
		MUST0(pthread_join(calls[i].thread, NULL));
	call_remove();
	wl_pass();
}
