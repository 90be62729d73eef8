// SPDX-License-Identifier: Apache-2.0
/* A process whose second thread has something of its own: `change` sets it, and says 0 or an errno; `check` looks again. */
#ifndef THREAD_H
#define THREAD_H
#include "wl.h"

static int change(void);
static void check(void);
static volatile int thread_up, thread_go, thread_error;

static void *thread_body(void *unused)
{
	(void)unused;
	thread_error = change();
	thread_up = 1;
	while (!thread_go)
		usleep(50000);
	check();
	return NULL;
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	MUST0(pthread_create(&thread, NULL, thread_body, NULL));
	while (!thread_up)
		usleep(1000);
	if (thread_error)
		wl_skip("a thread cannot have this of its own here: %s", strerror(thread_error));
	wl_ready_wait();
	thread_go = 1;
	MUST0(pthread_join(thread, NULL));
	wl_pass();
}
#endif
