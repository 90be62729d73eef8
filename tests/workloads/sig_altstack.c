// SPDX-License-Identifier: Apache-2.0
/* Alternate signal stacks, one in each thread: idle, disarmed by SS_AUTODISARM, and one thread caught while running on it. */
/* wl: */
#include "wl.h"
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

enum { size = 65536 };
static char stacks[4][size];
static volatile int inside, go, checked;
static int up;

static void on_it(int number)
{
	stack_t now;
	char here;
	(void)number;
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_flags == SS_ONSTACK && &here > stacks[1] && &here < stacks[1] + size, "not on the alternate stack");
	inside = 1;
	while (!go)
		usleep(50000);
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == stacks[1] && now.ss_size == size && now.ss_flags == SS_ONSTACK, "on the stack: %p, %zu, flags %x", now.ss_sp, now.ss_size, now.ss_flags);
	checked++;
}

static void short_visit(int number)
{
	char here;
	(void)number;
	CHECK(&here > stacks[0] && &here < stacks[0] + size, "the handler runs at %p", (void *)&here);
	checked++;
}

static void *body(void *argument)
{
	int i = (int)(intptr_t)argument, flags = i == 2 ? (int)SS_AUTODISARM : 0;
	stack_t stack = {.ss_sp = stacks[i], .ss_size = size - (size_t)i * 4096 * (i > 1), .ss_flags = flags}, now;
	MUST(sigaltstack(&stack, NULL));
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	if (i == 1)
		raise(SIGUSR1);
	while (!go)
		usleep(50000);
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == stack.ss_sp && now.ss_size == stack.ss_size && now.ss_flags == flags, "thread %d: %p, %zu, flags %x", i, now.ss_sp, now.ss_size, now.ss_flags);
	return NULL;
}

int main(void)
{
	pthread_t ids[4];
	stack_t stack = {.ss_sp = stacks[0], .ss_size = size}, now;
	wl_begin();
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_it, .sa_flags = SA_ONSTACK}, NULL));
	MUST(sigaction(SIGUSR2, &(struct sigaction){.sa_handler = short_visit, .sa_flags = SA_ONSTACK}, NULL));
	MUST(sigaltstack(&stack, NULL));
	for (intptr_t i = 1; i < 4; i++)
		MUST0(pthread_create(&ids[i], NULL, body, (void *)i));
	while (!inside || __atomic_load_n(&up, __ATOMIC_SEQ_CST) < 3)
		usleep(1000);
	wl_ready_wait();
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == stacks[0] && now.ss_size == size && now.ss_flags == 0, "main thread: %p, %zu, flags %x", now.ss_sp, now.ss_size, now.ss_flags);
	raise(SIGUSR2);
	go = 1;
	for (int i = 1; i < 4; i++)
		MUST0(pthread_join(ids[i], NULL));
	CHECK(checked == 2, "%d handlers ran", checked);
	/* back from it, the thread may take its stack down: it was not left half on it */
	MUST(sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL));
	wl_pass();
}
