// SPDX-License-Identifier: Apache-2.0
/* Signal actions: for every signal a handler, ignored or default, with flags and masks of many kinds. */
/* wl: */
#include "wl.h"

static volatile int caught, code, on_time_mask;

static void plain(int number) { caught = number; }

static void with_info(int number, siginfo_t *info, void *context)
{
	sigset_t now;
	(void)context;
	sigprocmask(SIG_BLOCK, NULL, &now);
	caught = number;
	code = info->si_value.sival_int;
	on_time_mask = sigismember(&now, SIGHUP);
}

static struct sigaction wanted(int number)
{
	static const int flags[] = {0, SA_RESTART, SA_NODEFER, SA_RESETHAND, SA_ONSTACK, SA_SIGINFO, SA_SIGINFO | SA_RESTART | SA_NODEFER, SA_NOCLDSTOP | SA_NOCLDWAIT};
	struct sigaction action;
	memset(&action, 0, sizeof action);
	action.sa_flags = flags[number % 8];
	if (number % 5 == 0)
		action.sa_handler = SIG_IGN;
	else if (number % 7 == 0)
		action.sa_handler = SIG_DFL;
	else if (action.sa_flags & SA_SIGINFO)
		action.sa_sigaction = with_info;
	else
		action.sa_handler = plain;
	for (int i = 1; i <= 64; i++)
		if (i * number % 11 == 3 && i != SIGKILL && i != SIGSTOP && i != 32 && i != 33)
			sigaddset(&action.sa_mask, i);
	return action;
}

static bool tested(int number) { return number != SIGKILL && number != SIGSTOP && number != 32 && number != 33; }

int main(void)
{
	wl_begin();
	for (int i = 1; i <= 64; i++)
		if (tested(i)) {
			struct sigaction action = wanted(i);
			MUST(sigaction(i, &action, NULL));
		}
	/* the C library keeps 32 and 33 to itself: by the system call */
	struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } __attribute__((packed)) raw = {SIG_IGN, 0, NULL, 0x10}, now;
	MUST((int)syscall(SYS_rt_sigaction, 33, &raw, NULL, 8L));
	wl_ready_wait();
	for (int i = 1; i <= 64; i++) {
		if (!tested(i))
			continue;
		struct sigaction action = wanted(i), is;
		MUST(sigaction(i, NULL, &is));
		CHECK(is.sa_handler == action.sa_handler, "signal %d: handler is %p, was %p", i, (void *)is.sa_handler, (void *)action.sa_handler);
		is.sa_flags &= ~0x04000000; /* SA_RESTORER, which the C library adds */
		CHECK(is.sa_flags == action.sa_flags, "signal %d: flags are %x, were %x", i, is.sa_flags, action.sa_flags);
		for (int j = 1; j <= 64; j++)
			CHECK(sigismember(&is.sa_mask, j) == sigismember(&action.sa_mask, j), "signal %d: mask differs at %d", i, j);
	}
	MUST((int)syscall(SYS_rt_sigaction, 33, NULL, &now, 8L));
	CHECK(now.handler == SIG_IGN && now.mask == 0x10, "signal 33: handler %p, mask %" PRIx64, now.handler, now.mask);
	MUST(kill(getpid(), SIGHUP)); /* 1: restarts */
	CHECK(caught == SIGHUP, "SIGHUP is not caught");
	MUST(sigqueue(getpid(), 46, (union sigval){.sival_int = 77})); /* 46 % 8 = 6: siginfo */
	CHECK(caught == 46 && code == 77, "46 is not caught with its value: %d, %d", caught, code);
	struct sigaction reset;
	MUST(kill(getpid(), 43)); /* 43 % 8 = 3: SA_RESETHAND */
	MUST(sigaction(43, NULL, &reset));
	CHECK(caught == 43 && reset.sa_handler == SIG_DFL, "SA_RESETHAND is not as it was");
	wl_pass();
}
