// SPDX-License-Identifier: Apache-2.0
/* A thread whose system calls are dispatched to a handler of its own (PR_SET_SYSCALL_USER_DISPATCH), and would be now. */
/* wl: refused=has_its_system_calls_dispatched_to_a_handler_of_its_own */
#include "wl.h"

enum { DISPATCH = 59, ON = 1, BLOCK = 1 };

static volatile char selector, up, go;
static volatile int failed, caught;

static void handler(int number)
{
	(void)number;
	selector = 0;
	caught++;
}

static void *body(void *unused)
{
	(void)unused;
	if (prctl(DISPATCH, (long)ON, 0L, 0L, &selector)) {
		failed = errno;
		up = 1;
		return NULL;
	}
	wl_spins();
	selector = BLOCK;
	up = 1;
	while (!go)
		;
	syscall(SYS_getpid);
	return NULL;
}

int main(void)
{
	struct sigaction action = {.sa_handler = handler};
	pthread_t thread;
	wl_begin();
	MUST(sigaction(SIGSYS, &action, NULL));
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!up)
		usleep(1000);
	if (failed)
		wl_skip("no dispatch of system calls: %s", strerror(failed));
	wl_ready_wait();
	CHECK(!caught, "%d system calls were dispatched that it has not made", caught);
	go = 1;
	MUST0(pthread_join(thread, NULL));
	CHECK(caught == 1, "%d system calls were dispatched, of 1", caught);
	wl_pass();
}
