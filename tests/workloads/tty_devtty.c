// SPDX-License-Identifier: Apache-2.0
/* /dev/tty held open beside the slave, in the session's leader and in a job, and where no slave is open at all. */
/* wl: */
#include "tty.h"

static struct tty tty;

static void job(void *argument)
{
	(void)argument;
	wl_child_ready_wait();
	CHECK(tcgetsid(50) == getsid(0), "job: session is %d, was %d", tcgetsid(50), getsid(0));
	fd_put(50, "job", 3);
}

static void leader(void *argument)
{
	(void)argument;
	int saved[2] = {wl_child_pipe[0], wl_child_pipe[1]};
	close(tty.master);
	MUST(setsid());
	MUST(ioctl(tty.slave, TIOCSCTTY, 0));
	int controlling = MUST(open("/dev/tty", O_RDWR | O_CLOEXEC));
	MUST(dup2(controlling, 50));
	close(tty.slave); /* only /dev/tty is left */
	pid_t pid = wl_child(job, NULL);
	wl_child_pipe[0] = saved[0], wl_child_pipe[1] = saved[1];
	struct fd_facts was = fd_look(controlling);
	wl_child_ready_wait();
	fd_check(&was, "/dev/tty");
	CHECK(fd_same(controlling, 50), "duplicates are apart");
	CHECK(fd_one_description(getpid(), 50, pid, 50), "not shared with the job");
	CHECK(tcgetsid(controlling) == getpid(), "session is %d", tcgetsid(controlling));
	CHECK(tcgetpgrp(controlling) == getpgrp(), "foreground is %d", tcgetpgrp(controlling));
	fd_put(controlling, "leader,", 7);
	wl_end(pid);
}

int main(void)
{
	wl_begin();
	tty = tty_make(O_CLOEXEC);
	tty_raw(tty.slave);
	pid_t pid = wl_child(leader, NULL);
	int slave = tty.slave;
	wl_ready_wait();
	tty_check_pair(&tty);
	wl_end(pid);
	fd_expect_text(tty.master, "leader,job", "written through /dev/tty");
	CHECK(tcgetsid(slave) == -1, "the terminal still has a session");
	wl_pass();
}
