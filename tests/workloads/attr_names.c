// SPDX-License-Identifier: Apache-2.0
/* Names (comm) of processes and threads: full length, with spaces, brackets, a newline, bytes that are no UTF-8, empty. */
/* wl: */
#include "wl.h"

static const char *const names[] = {"main (it) has) ", "line\nbreak", "caf\xe9 \xff\xfe", "", "123456789012345", " ", ") S 1 1 1", "ok"};
enum { count = sizeof names / sizeof names[0] };
static volatile int up, go;

static void check(int i)
{
	char now[16];
	MUST(prctl(PR_GET_NAME, now));
	CHECK(!strcmp(now, names[i]), "name %d is \"%s\", was \"%s\"", i, now, names[i]);
}

static void *body(void *argument)
{
	MUST(prctl(PR_SET_NAME, names[(intptr_t)argument]));
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	while (!go)
		usleep(50000);
	check((int)(intptr_t)argument);
	return NULL;
}

static void child(void *argument)
{
	MUST(prctl(PR_SET_NAME, names[(intptr_t)argument]));
	wl_child_ready_wait();
	check((int)(intptr_t)argument);
	_exit(0);
}

int main(void)
{
	pthread_t threads[count];
	pid_t pids[count];
	wl_begin();
	for (intptr_t i = 1; i < count; i++)
		pids[i] = wl_child(child, (void *)i);
	for (intptr_t i = 1; i < count; i++)
		MUST0(pthread_create(&threads[i], NULL, body, (void *)i));
	MUST(prctl(PR_SET_NAME, names[0]));
	while (up < count - 1)
		usleep(1000);
	wl_ready_wait();
	go = 1;
	check(0);
	for (int i = 1; i < count; i++) {
		MUST0(pthread_join(threads[i], NULL));
		wl_end(pids[i]);
	}
	wl_pass();
}
