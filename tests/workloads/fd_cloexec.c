// SPDX-License-Identifier: Apache-2.0
/* Close-on-exec of every kind of file, one with and one without it, and what a program that is executed then finds. */
/* wl: */
#include "fd.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static int made[60], count;

static void both(int fd)
{
	int twin = MUST(fcntl(fd, F_DUPFD_CLOEXEC, 0));
	made[count++] = fd;
	made[count++] = twin;
}

int main(int argc, char **argv)
{
	int ends[2];
	if (argc > 1) { /* executed again: which of the numbers are still there? */
		for (int i = 1; i < argc; i++)
			CHECK((fcntl(atoi(argv[i]), F_GETFD) == 0) == (i % 2 == 1), "descriptor %s after exec", argv[i]);
		_exit(0);
	}
	wl_begin();
	sigset_t set = wl_set(SIGUSR1);
	both(fd_make("file", "x"));
	both(MUST(open(".", O_RDONLY | O_DIRECTORY)));
	both(MUST(open("/dev/null", O_RDWR)));
	both(MUST(eventfd(3, 0)));
	both(MUST(epoll_create1(0)));
	both(MUST(timerfd_create(CLOCK_MONOTONIC, 0)));
	both(MUST(signalfd(-1, &set, 0)));
	both(MUST(memfd_create("memory", 0)));
	MUST(pipe(ends));
	both(ends[0]);
	both(ends[1]);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	both(ends[0]);
	both(ends[1]);
	both(MUST(socket(AF_INET, SOCK_STREAM, 0)));
	both(MUST(socket(AF_INET6, SOCK_DGRAM, 0)));
	wl_ready_wait();
	char text[60][12], *arguments[62] = {argv[0]};
	for (int i = 0; i < count; i++) {
		CHECK(fcntl(made[i], F_GETFD) == (i % 2 ? FD_CLOEXEC : 0), "descriptor %d: flags %d", made[i],
		      fcntl(made[i], F_GETFD));
		if (i % 2)
			CHECK(fd_same(made[i], made[i - 1]), "%d and %d are not one description", made[i], made[i - 1]);
		snprintf(text[i], sizeof text[i], "%d", made[i]);
		arguments[i + 1] = text[i];
	}
	pid_t child = MUST(fork());
	if (!child) {
		execv("/proc/self/exe", arguments);
		_exit(9);
	}
	wl_reap(child);
	wl_pass();
}
