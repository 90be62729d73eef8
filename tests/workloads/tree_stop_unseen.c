// SPDX-License-Identifier: Apache-2.0
/* A child has stopped and its parent has not yet asked: the news still waits for it, once, and with the right signal. */
/* wl: */
#include "wl.h"

static void body(void *unused)
{
	(void)unused;
	wl_child_ready_wait();
	_exit(0);
}

int main(void)
{
	siginfo_t info;
	int status;
	wl_begin();
	pid_t seen = wl_child(body, NULL), unseen = wl_child(body, NULL);
	MUST(kill(seen, SIGSTOP));
	MUST(kill(unseen, SIGSTOP));
	MUST(waitid(P_PID, (id_t)seen, &info, WSTOPPED));
	MUST(waitid(P_PID, (id_t)unseen, &info, WSTOPPED | WNOWAIT));
	wl_ready_wait();
	CHECK(waitpid(seen, &status, WUNTRACED | WNOHANG) == 0, "a stop that was seen is told again: 0x%x", status);
	CHECK(waitpid(unseen, &status, WUNTRACED | WNOHANG) == unseen, "a stop that was not seen yet is forgotten");
	CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "status is 0x%x", status);
	MUST(kill(seen, SIGCONT));
	MUST(kill(unseen, SIGCONT));
	wl_end(seen);
	wl_end(unseen);
	wl_pass();
}
