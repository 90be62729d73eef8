// SPDX-License-Identifier: Apache-2.0
/* signalfds: masks, and signals pending for the process that are read through them with their siginfo. */
/* wl: */
#include "fd.h"
#include <sys/signalfd.h>

int main(void)
{
	struct signalfd_siginfo info[4];
	char path[40], value[40];
	wl_begin();
	sigset_t set = wl_set(SIGUSR1), other = wl_set(SIGHUP), all;
	sigaddset(&set, SIGRTMIN + 5);
	sigaddset(&set, 64);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(sigprocmask(SIG_BLOCK, &other, NULL));
	sigfillset(&all);
	int fd = MUST(signalfd(-1, &set, SFD_NONBLOCK));
	int quiet = MUST(signalfd(-1, &other, SFD_NONBLOCK | SFD_CLOEXEC));
	int everything = MUST(signalfd(-1, &all, 0));
	MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 11}));
	MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 22}));
	MUST(kill(getpid(), SIGUSR1));
	struct fd_facts was[] = {fd_look(fd), fd_look(quiet), fd_look(everything)};
	uint64_t masks[3], now;
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof path, "/proc/self/fdinfo/%d", was[i].fd);
		CHECK(wl_proc_field(path, "sigmask", value, sizeof value), "no mask in %s", path);
		masks[i] = strtoull(value, NULL, 16);
	}
	wl_ready_wait();
	for (int i = 0; i < 3; i++) {
		fd_check(&was[i], "signalfd");
		snprintf(path, sizeof path, "/proc/self/fdinfo/%d", was[i].fd);
		CHECK(wl_proc_field(path, "sigmask", value, sizeof value), "no mask in %s", path);
		now = strtoull(value, NULL, 16);
		CHECK(now == masks[i], "mask is %016" PRIx64 ", was %016" PRIx64, now, masks[i]);
	}
	CHECK(read(quiet, info, sizeof info) == -1 && errno == EAGAIN, "a signal came by itself");
	CHECK(read(fd, info, sizeof info) == 3 * (ssize_t)sizeof *info, "not three signals");
	CHECK(info[0].ssi_signo == SIGUSR1 && info[0].ssi_pid == (uint32_t)getpid(), "first is %u", info[0].ssi_signo);
	for (int i = 1; i < 3; i++)
		CHECK(info[i].ssi_signo == (uint32_t)SIGRTMIN + 5 && info[i].ssi_int == 11 * i && info[i].ssi_code == SI_QUEUE,
		      "signal %d: %u, value %d, code %d", i, info[i].ssi_signo, info[i].ssi_int, info[i].ssi_code);
	MUST(kill(getpid(), SIGHUP));
	CHECK(read(quiet, info, sizeof info) == sizeof *info && info[0].ssi_signo == SIGHUP, "no new signal");
	wl_pass();
}
