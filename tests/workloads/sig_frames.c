// SPDX-License-Identifier: Apache-2.0
/* Signal frames in unusual places: on alternate stacks in shared memory, and on stacks that a handler has switched away from (green threads). */
/* wl: same=no */
/* not compared: the signal that preempts its green threads is pending now and then */
#include "wl.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <ucontext.h>

/* Room for several frames: where the processor is wanted by many, the timer fires again while its handler waits. */
enum { size = 1 << 17, green = 3, kinds = 4 };
static ucontext_t contexts[green];
static volatile int switching, running, inside, go, left;
static volatile long turns[green], wrong;

/* No signal is blocked meanwhile, so that the mask is always the same. */
static void switch_over(int number)
{
	int from = running, to = (running + 1) % green;
	(void)number;
	if (switching)
		return;
	switching = 1;
	running = to;
	swapcontext(&contexts[from], &contexts[to]);
	switching = 0;
}

static void compute(int number)
{
	double first = 0;
	switching = 0;
	for (long round = 0;; round++) {
		double x = number + 1;
		for (int i = 0; i < 1000; i++)
			x = x * 1.0001 + 0.5;
		if (round == 0)
			first = x;
		else if (x != first)
			wrong++;
		turns[number]++;
	}
}

static void stay(int number)
{
	(void)number;
	__atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST);
	while (!go)
		usleep(50000);
	__atomic_add_fetch(&left, 1, __ATOMIC_SEQ_CST);
}

static void *stack_of(int kind)
{
	if (kind == 0 || kind == 1)
		return MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | (kind ? MAP_SHARED : MAP_PRIVATE), -1, 0));
	if (kind == 2) {
		int fd = MUST(memfd_create("stack", MFD_CLOEXEC));
		MUST(ftruncate(fd, 3 * size));
		void *at = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, size)); /* its middle */
		close(fd);
		return at;
	}
	int id = MUST(shmget(IPC_PRIVATE, size, 0600));
	void *at = MUST(shmat(id, NULL, 0));
	MUST(shmctl(id, IPC_RMID, NULL));
	return at;
}

static void *body(void *argument)
{
	stack_t stack = {.ss_sp = stack_of((int)(intptr_t)argument), .ss_size = size};
	MUST(sigaltstack(&stack, NULL));
	raise(SIGUSR1);
	return NULL;
}

int main(void)
{
	pthread_t ids[kinds];
	sigset_t alarms = wl_set(SIGALRM);
	wl_begin();
	MUST(sigprocmask(SIG_BLOCK, &alarms, NULL));
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = stay, .sa_flags = SA_ONSTACK}, NULL));
	MUST(sigaction(SIGALRM, &(struct sigaction){.sa_handler = switch_over, .sa_flags = SA_RESTART | SA_NODEFER}, NULL));
	for (intptr_t i = 0; i < kinds; i++)
		MUST0(pthread_create(&ids[i], NULL, body, (void *)i));
	while (__atomic_load_n(&inside, __ATOMIC_SEQ_CST) < kinds)
		usleep(1000);
	wl_spins();
	MUST(sigprocmask(SIG_UNBLOCK, &alarms, NULL));
	for (int i = 1; i < green; i++) {
		MUST(getcontext(&contexts[i]));
		contexts[i].uc_stack.ss_size = size;
		contexts[i].uc_stack.ss_sp = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0));
		makecontext(&contexts[i], (void (*)(void))compute, 1, i);
	}
	struct itimerval often = {{0, 20000}, {0, 20000}};
	MUST(setitimer(ITIMER_REAL, &often, NULL));
	while (!turns[1] || !turns[2])
		usleep(1000);
	wl_ready_wait();
	go = 1;
	for (int i = 0; i < kinds; i++)
		MUST0(pthread_join(ids[i], NULL));
	CHECK(left == kinds, "%d of %d handlers returned", left, kinds);
	for (int i = 1; i < green; i++)
		for (long before = turns[i]; turns[i] == before;)
			usleep(1000);
	MUST(setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL));
	CHECK(!wrong, "%ld results were wrong", wrong);
	wl_pass();
}
