// SPDX-License-Identifier: Apache-2.0
/* Pending signals with all of their siginfo: of the process and of two threads, queued ones in their order. */
/* wl: */
#include "wl.h"

enum { queued = 20, kept = sizeof(void *) == 8 ? 32 : 16 }; /* bytes of siginfo, from the 16th on, that the kernel keeps */
static volatile pid_t other;
static volatile int go;
static siginfo_t faked;

static sigset_t blocked(void)
{
	sigset_t set;
	sigfillset(&set);
	sigdelset(&set, SIGKILL);
	sigdelset(&set, SIGSTOP);
	return set;
}

static int take(int number, siginfo_t *info)
{
	sigset_t set = wl_set(number);
	memset(info, 0, sizeof *info);
	struct timespec none = {0, 0};
	return (int)syscall(SYS_rt_sigtimedwait, &set, info, &none, 8L); /* the C library would turn SI_TKILL into SI_USER */
}

static void directed(const char *who, int first)
{
	siginfo_t info;
	CHECK(take(SIGUSR1, &info) == SIGUSR1, "%s: SIGUSR1 is no longer pending", who);
	CHECK(info.si_code == SI_TKILL && info.si_pid == getpid() && info.si_uid == getuid(), "%s: SIGUSR1: code %d, from %d", who, info.si_code, info.si_pid);
	for (int i = 0; i < queued; i++) {
		CHECK(take(SIGRTMIN + 2, &info) == SIGRTMIN + 2, "%s: queued signal %d is lost", who, i);
		CHECK(info.si_value.sival_int == first + i, "%s: queued signal %d has the value %d", who, i, info.si_value.sival_int);
		CHECK(info.si_code == SI_QUEUE, "%s: code %d", who, info.si_code);
	}
	CHECK(take(SIGRTMIN + 2, &info) == -1 && errno == EAGAIN, "%s: more signals than before", who);
}

static void *body(void *unused)
{
	(void)unused;
	other = gettid();
	while (!go)
		usleep(50000);
	directed("second thread", 5000);
	return NULL;
}

static void queue_to(pid_t tid, int number, int value)
{
	siginfo_t info = {.si_signo = number, .si_code = SI_QUEUE};
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_int = value;
	MUST((int)syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, number, &info));
}

int main(void)
{
	pthread_t thread;
	siginfo_t info;
	wl_begin();
	sigset_t set = blocked();
	MUST0(pthread_sigmask(SIG_SETMASK, &set, NULL));
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!other)
		usleep(1000);
	/* the process */
	MUST(kill(getpid(), SIGUSR2));
	MUST(kill(getpid(), SIGUSR2)); /* a second one is not queued */
	for (int i = 0; i < queued; i++)
		MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_ptr = (void *)(uintptr_t)wl_word(1, (uint64_t)i)}));
	MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 3}));
	faked.si_signo = SIGURG; /* whatever a process tells of itself */
	faked.si_code = -60;
	faked.si_errno = 17;
	wl_fill((char *)&faked + 16, kept, 6);
	MUST((int)syscall(SYS_rt_sigqueueinfo, getpid(), SIGURG, &faked));
	pid_t child = MUST(fork()); /* SIGCHLD from a child that stays a zombie */
	if (child == 0)
		_exit(9);
	MUST(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT));
	/* the threads */
	MUST((int)syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1));
	MUST((int)syscall(SYS_tgkill, getpid(), other, SIGUSR1));
	for (int i = 0; i < queued; i++) {
		queue_to(gettid(), SIGRTMIN + 2, i);
		queue_to(other, SIGRTMIN + 2, 5000 + i);
	}
	wl_ready_wait();
	CHECK(take(SIGUSR2, &info) == SIGUSR2 && info.si_code == SI_USER && info.si_pid == getpid(), "SIGUSR2: code %d, from %d", info.si_code, info.si_pid);
	CHECK(take(SIGUSR2, &info) == -1, "SIGUSR2 has multiplied");
	for (int i = 0; i < queued; i++) {
		CHECK(take(SIGRTMIN + 5, &info) == SIGRTMIN + 5, "queued signal %d is lost", i);
		CHECK((uintptr_t)info.si_value.sival_ptr == (uintptr_t)wl_word(1, (uint64_t)i), "queued signal %d: another value %p", i, info.si_value.sival_ptr);
		CHECK(info.si_pid == getpid() && info.si_code == SI_QUEUE, "queued signal %d: code %d, from %d", i, info.si_code, info.si_pid);
	}
	CHECK(take(SIGRTMIN + 3, &info) == SIGRTMIN + 3 && info.si_value.sival_int == 3, "SIGRTMIN + 3");
	CHECK(take(SIGURG, &info) == SIGURG, "SIGURG is lost");
	CHECK(info.si_code == -60 && info.si_errno == 17 && !memcmp((char *)&info + 16, (char *)&faked + 16, kept), "SIGURG: siginfo differs");
	CHECK(take(SIGCHLD, &info) == SIGCHLD && info.si_pid == child && info.si_code == CLD_EXITED && info.si_status == 9,
	      "SIGCHLD: code %d, from %d, status %d", info.si_code, info.si_pid, info.si_status);
	directed("main thread", 0);
	go = 1;
	MUST0(pthread_join(thread, NULL));
	sigset_t pending;
	MUST(sigpending(&pending));
	for (int i = 1; i <= 64; i++)
		CHECK(!sigismember(&pending, i) || i == SIGCHLD || i == SIGCONT, /* --leave-stopped is ended by SIGCONT */
		      "signal %d is pending, too", i);
	MUST(waitpid(child, NULL, 0));
	wl_pass();
}
