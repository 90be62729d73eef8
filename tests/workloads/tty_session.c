// SPDX-License-Identifier: Apache-2.0
/* A child that leads a session with a pseudo-terminal as its controlling terminal, with a job in the foreground and one in
 * the background; the parent holds the master. */
/* wl: */
#include "tty.h"

static struct tty tty;
static int log_fd;

static void job(bool foreground)
{
	sigset_t set = wl_set(SIGINT);
	siginfo_t info;
	sigaddset(&set, SIGTERM);
	MUST(setpgid(0, 0));
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	wl_child_ready();
	for (;;) {
		int got = sigwaitinfo(&set, &info);
		if (got == SIGINT)
			fd_put(log_fd, foreground ? "F" : "B", 1);
		else if (got == SIGTERM)
			_exit(0);
	}
}

static void foreground(void *argument)
{
	(void)argument;
	job(true);
}

static void background(void *argument)
{
	(void)argument;
	job(false);
}

static void leader(void *argument)
{
	(void)argument;
	int saved[2] = {wl_child_pipe[0], wl_child_pipe[1]};
	signal(SIGTTOU, SIG_IGN);
	close(tty.master);
	MUST(setsid());
	MUST(ioctl(tty.slave, TIOCSCTTY, 0));
	pid_t front = wl_child(foreground, NULL), back = wl_child(background, NULL);
	MUST(tcsetpgrp(tty.slave, front));
	wl_child_pipe[0] = saved[0], wl_child_pipe[1] = saved[1];
	wl_child_ready_wait();
	CHECK(tcgetsid(tty.slave) == getpid(), "session is %d", tcgetsid(tty.slave));
	CHECK(tcgetpgrp(tty.slave) == front, "foreground is %d, was %d", tcgetpgrp(tty.slave), front);
	int again = MUST(open("/dev/tty", O_RDWR));
	fd_put(again, "hello", 5);
	MUST(tcsetpgrp(tty.slave, back));
	CHECK(tcgetpgrp(tty.slave) == back, "the foreground cannot be changed");
	fd_put(log_fd, "L", 1); /* told the parent that it may press ^C again */
	wl_wait();
	MUST(tcsetpgrp(tty.slave, getpgrp()));
	wl_end(front);
	wl_end(back);
}

int main(void)
{
	int log[2];
	wl_begin();
	tty = tty_make(O_CLOEXEC);
	MUST(pipe(log));
	log_fd = log[1];
	pid_t pid = wl_child(leader, NULL);
	close(tty.slave);
	wl_ready_wait();
	pid_t sid;
	MUST(ioctl(tty.master, TIOCGSID, &sid));
	CHECK(sid == pid, "the terminal's session is %d, was %d", sid, pid);
	char c = 3;
	fd_put(tty.master, &c, 1);
	fd_expect_text(log[0], "F", "the job in the foreground gets ^C");
	fd_expect_text(tty.master, "^C", "echo");
	MUST(kill(pid, SIGTERM));
	fd_expect_text(log[0], "L", "leader");
	fd_expect_text(tty.master, "hello", "written through /dev/tty");
	fd_put(tty.master, &c, 1);
	fd_expect_text(log[0], "B", "the job that came to the foreground gets ^C");
	wl_end(pid);
	wl_pass();
}
