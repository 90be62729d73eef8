// SPDX-License-Identifier: Apache-2.0
/* More system calls caught in the middle, one in each thread: none may end before what it waits for comes.  Those with a
 * mask of their own wait with it, and have it given back.  What they wait for comes after the checkpoint. */
/* wl: */
#include "call.h"
#include <sys/sendfile.h>
#include <sys/uio.h>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#define LOCK 6 /* FUTEX_LOCK_PI */
#define WAIT_REQUEUE 11
#define CMP_REQUEUE 12
#define UNLOCK 7

static int sockets[3][2], file;
static uint32_t word[4];
static volatile sig_atomic_t seen;

static void handler(int number) { seen = number; }

static struct timespec in_600_s(clockid_t clock)
{
	int64_t end = now(clock) + 600000000000LL;
	return (struct timespec){end / 1000000000, end % 1000000000};
}

struct waiter { /* struct futex_waitv */
	uint64_t value, address;
	uint32_t flags, reserved;
};

static long do_futex_waitv(void)
{
	struct waiter two[2] = {{0, (uintptr_t)&word[0], 2 | 128, 0}, {0, (uintptr_t)&word[1], 2 | 128, 0}};
	struct timespec t = in_600_s(CLOCK_MONOTONIC);
	long n = syscall(SYS_futex_waitv, two, 2L, 0L, &t, (long)CLOCK_MONOTONIC);
	return n == 1 || (n == -1 && errno == EAGAIN && word[1]) ? 0 : n == -1 ? -1 : n + 100;
}
static long do_futex_waitv_forever(void)
{
	struct waiter one[1] = {{0, (uintptr_t)&word[1], 2 | 128, 0}};
	long n = syscall(SYS_futex_waitv, one, 1L, 0L, NULL, 0L);
	return n == 0 || (n == -1 && errno == EAGAIN && word[1]) ? 0 : n;
}
static long do_lock(void)
{
	long n = syscall(SYS_futex, &word[2], LOCK | FUTEX_PRIVATE_FLAG, 0L, NULL, NULL, 0L);
	CHECK(n || (word[2] & FUTEX_TID_MASK) == (uint32_t)gettid(), "the PI futex belongs to %x", word[2]);
	return n;
}
static long do_lock_until(void)
{
	struct timespec t = in_600_s(CLOCK_REALTIME);
	return syscall(SYS_futex, &word[3], LOCK | FUTEX_PRIVATE_FLAG, 0L, &t, NULL, 0L);
}
static long do_waitid(void)
{
	siginfo_t info = {0};
	long n = syscall(SYS_waitid, (long)P_PID, (long)child, &info, (long)(WEXITED | WNOWAIT), NULL);
	return n == 0 && info.si_pid == child && info.si_status == 7 ? 0 : n == -1 ? -1 : 100;
}
static long do_sendfile(void)
{
	off_t at = 0;
	while (at < 200000) {
		ssize_t n = sendfile(pipes[0][1], file, &at, 200000 - (size_t)at);
		if (n <= 0)
			return n ? n : 100;
	}
	return 0;
}
static long do_splice(void)
{
	ssize_t n = syscall(SYS_splice, pipes[1][0], NULL, pipes[2][1], NULL, 100L, 0L);
	return n == 1 ? 0 : n == -1 ? -1 : n + 100;
}
static long do_tee(void) { ssize_t n = syscall(SYS_tee, pipes[3][0], pipes[4][1], 100L, 0L); return n == 1 ? 0 : n == -1 ? -1 : n + 100; }
static long do_readv(void)
{
	char a, b;
	struct iovec two[2] = {{&a, 1}, {&b, 1}};
	ssize_t n = readv(pipes[5][0], two, 2);
	return n == 1 && a == 'x' ? 0 : n == -1 ? -1 : n + 100;
}
static long do_open(void) { long fd = syscall(SYS_openat, AT_FDCWD, "fifo", O_RDONLY, 0L); return fd >= 0 ? close((int)fd) : fd; }
static long do_recvmsg(void)
{
	char text[8];
	struct iovec one = {text, sizeof text};
	struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1};
	ssize_t n = recvmsg(sockets[0][0], &message, MSG_WAITALL);
	return n == 8 && !memcmp(text, "abcdefgh", 8) ? 0 : n == -1 ? -1 : n + 100;
}
static long do_recvmmsg(void)
{
	char text[2][8];
	struct iovec one[2] = {{text[0], 8}, {text[1], 8}};
	struct mmsghdr two[2] = {{.msg_hdr = {.msg_iov = &one[0], .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &one[1], .msg_iovlen = 1}}};
	struct timespec t = {600, 0};
	int n = recvmmsg(sockets[1][0], two, 2, 0, &t);
	return n == 2 ? 0 : n == -1 ? -1 : n + 100;
}
static long do_sendmsg(void)
{
	static char big[4 << 20];
	static size_t done;
	while (done < sizeof big) {
		ssize_t n = send(sockets[2][1], big, sizeof big - done, 0);
		if (n <= 0)
			return n ? n : 100;
		done += (size_t)n;
	}
	return 0;
}
static long do_connect(void)
{
	int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	long n = connect(fd, (const struct sockaddr *)&address, sizeof address);
	int error = errno;
	if (n == 0)
		close(fd);
	errno = error;
	return n;
}
static long do_ppoll_mask(void)
{
	struct pollfd p = {pipes[6][0], POLLIN, 0};
	sigset_t none;
	sigemptyset(&none);
	sigaddset(&none, SIGTERM);
	long n = syscall(SYS_ppoll, &p, 1L, NULL, &none, 8L);
	return n == 1 ? 0 : n == -1 ? -1 : n + 100;
}
static long do_epoll_mask(void)
{
	struct epoll_event event;
	struct timespec t = {600, 0};
	sigset_t none;
	sigemptyset(&none);
	sigaddset(&none, SIGTERM);
	long n = syscall(SYS_epoll_pwait2, epoll, &event, 1L, &t, &none, 8L);
	return n == 1 ? 0 : n == -1 ? -1 : n + 100;
}
static long do_sigsuspend(void)
{
	sigset_t mask;
	sigfillset(&mask);
	sigdelset(&mask, SIGUSR2);
	seen = 0;
	syscall(SYS_rt_sigsuspend, &mask, 8L);
	return seen == SIGUSR2 ? 0 : -1;
}
static long do_semop(void)
{
	struct sembuf two[2] = {{0, -1, 0}, {0, 0, 0}};
	struct timespec t = {600, 0};
	return syscall(SYS_semtimedop, semaphore, two, 2L, &t);
}
static long do_msgrcv(void)
{
	struct { long type; char text[8]; } message;
	long n = syscall(SYS_msgrcv, queue, &message, 8L, -4L, (long)MSG_NOERROR);
	return n == 8 && message.type == 3 ? 0 : n == -1 ? -1 : n + 100;
}

static struct {
	const char *name;
	long (*call)(void);
	pthread_t thread;
	volatile pid_t tid;
	volatile int over;
} calls[] = {
	{"futex_waitv", do_futex_waitv},
	{"futex_waitv without an end", do_futex_waitv_forever},
	{"futex lock (PI)", do_lock},
	{"futex lock (PI) until", do_lock_until},
	{"waitid", do_waitid},
	{"sendfile", do_sendfile},
	{"splice", do_splice},
	{"tee", do_tee},
	{"readv", do_readv},
	{"open", do_open},
	{"recvmsg", do_recvmsg},
	{"recvmmsg", do_recvmmsg},
	{"send", do_sendmsg},
	{"connect", do_connect},
	{"ppoll with a mask", do_ppoll_mask},
	{"epoll_pwait2 with a mask", do_epoll_mask},
	{"sigsuspend", do_sigsuspend},
	{"semtimedop", do_semop},
	{"msgrcv", do_msgrcv},
};
enum { count = sizeof calls / sizeof calls[0] };

static void await(int i)
{
	for (; !calls[i].tid || wl_state(calls[i].tid) != 'S'; usleep(1000))
		CHECK(!calls[i].over, "%s has not waited", calls[i].name);
}

static void *body(void *argument)
{
	int i = (int)(intptr_t)argument;
	sigset_t before, after;
	MUST0(pthread_sigmask(SIG_SETMASK, NULL, &before));
	calls[i].tid = gettid();
	long n = calls[i].call();
	EXPECT(n == 0, "%s gives %ld (%s)", calls[i].name, n, n == -1 ? strerror(errno) : "");
	MUST0(pthread_sigmask(SIG_SETMASK, NULL, &after));
	EXPECT(!memcmp(&before, &after, 8), "%s has changed the mask", calls[i].name);
	calls[i].over = 1;
	return NULL;
}

int main(void)
{
	static char some[65536];
	sigset_t set = wl_set(SIGUSR2);
	wl_begin();
	MUST0(pthread_sigmask(SIG_BLOCK, &set, NULL));
	MUST(sigaction(SIGUSR2, &(struct sigaction){.sa_handler = handler}, NULL));
	call_prepare(0, 7, 0, 0);
	for (int i = 0; i < 3; i++)
		MUST(socketpair(AF_UNIX, i == 1 ? SOCK_DGRAM : SOCK_STREAM, 0, sockets[i]));
	file = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(file, 200000));
	MUST(mkfifo("fifo", 0600));
	int first = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(first, (const struct sockaddr *)&address, sizeof address)); /* the backlog is full */
	word[2] = word[3] = (uint32_t)gettid(); /* locked by this thread */
	for (intptr_t i = 0; i < count; i++)
		MUST0(pthread_create(&calls[i].thread, NULL, body, (void *)i));
	for (int i = 0; i < count; i++)
		await(i);
	wl_ready_wait();
	for (int i = 0; i < count; i++)
		EXPECT(!calls[i].over, "%s has ended too early", calls[i].name);
	/* to waitv and the others: what they wait for */
	word[1] = 1;
	syscall(SYS_futex, &word[1], FUTEX_WAKE_PRIVATE, 9L, NULL, NULL, 0L);
	MUST(syscall(SYS_futex, &word[2], UNLOCK | FUTEX_PRIVATE_FLAG, 0L, NULL, NULL, 0L));
	MUST(syscall(SYS_futex, &word[3], UNLOCK | FUTEX_PRIVATE_FLAG, 0L, NULL, NULL, 0L));
	MUST(kill(child, SIGTERM));
	MUST(write(pipes[1][1], "x", 1));
	MUST(write(pipes[3][1], "x", 1));
	MUST(write(pipes[5][1], "x", 1));
	MUST(write(pipes[6][1], "x", 1));
	MUST(write(pipes[7][1], "x", 1));
	int opened = MUST(open("fifo", O_RDWR));
	MUST(write(sockets[0][1], "abcdefgh", 8));
	MUST(write(sockets[1][1], "one", 3));
	MUST(write(sockets[1][1], "two", 3));
	MUST(accept(listener, NULL, NULL));
	MUST(accept(listener, NULL, NULL));
	MUST0(pthread_kill(calls[16].thread, SIGUSR2));
	struct { long type; char text[8]; } message = {3, ""};
	MUST(msgsnd(queue, &message, 8, 0));
	MUST(semop(semaphore, &(struct sembuf){0, 1, 0}, 1));
	for (size_t got = 0; got < 200000;)
		got += (size_t)MUST(read(pipes[0][0], some, sizeof some));
	for (size_t got = 0; got < 4 << 20;)
		got += (size_t)MUST(read(sockets[2][0], some, sizeof some));
	for (int i = 0; i < count; i++)
		MUST0(pthread_join(calls[i].thread, NULL));
	close(opened);
	MUST(waitpid(child, NULL, 0));
	call_remove();
	wl_pass();
}
