// SPDX-License-Identifier: Apache-2.0
/* Nice values and scheduling classes of threads: OTHER, BATCH, IDLE, FIFO, RR, reset-on-fork, another for each thread. */
/* wl: */
#include "wl.h"

#ifndef SCHED_RESET_ON_FORK
#define SCHED_RESET_ON_FORK 0x40000000
#endif

static const struct {
	int policy, priority, nice;
} kinds[] = {
	{SCHED_OTHER, 0, 0},  {SCHED_OTHER, 0, 7},  {SCHED_OTHER, 0, 19}, {SCHED_BATCH, 0, 0},
	{SCHED_BATCH, 0, 11}, {SCHED_IDLE, 0, 0},   {SCHED_FIFO, 1, 0},   {SCHED_RR, 17, 0},
	{SCHED_FIFO, 99, 3},  {SCHED_OTHER | SCHED_RESET_ON_FORK, 0, 2},  {SCHED_RR | SCHED_RESET_ON_FORK, 5, 0}, {SCHED_OTHER, 0, -7},
};
enum { count = sizeof kinds / sizeof kinds[0] };
static volatile int up, go;
static bool available[count];

static void *body(void *argument)
{
	int i = (int)(intptr_t)argument;
	struct sched_param param = {.sched_priority = kinds[i].priority}, now;
	available[i] = true;
	if (sched_setscheduler(0, kinds[i].policy, &param) || setpriority(PRIO_PROCESS, 0, kinds[i].nice)) {
		CHECK(errno == EPERM || errno == EACCES, "kind %d: %s", i, strerror(errno));
		available[i] = false; /* not permitted here: what it got instead must stay, at least */
	}
	int policy = sched_getscheduler(0), nice = getpriority(PRIO_PROCESS, 0);
	MUST(sched_getparam(0, &param));
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	while (!go)
		usleep(50000);
	CHECK(sched_getscheduler(0) == policy, "kind %d: policy is %x, was %x", i, sched_getscheduler(0), policy);
	MUST(sched_getparam(0, &now));
	CHECK(now.sched_priority == param.sched_priority, "kind %d: priority is %d, was %d", i, now.sched_priority, param.sched_priority);
	CHECK(getpriority(PRIO_PROCESS, 0) == nice, "kind %d: nice is %d, was %d", i, getpriority(PRIO_PROCESS, 0), nice);
	return NULL;
}

int main(void)
{
	pthread_t threads[count];
	wl_begin();
	MUST(setpriority(PRIO_PROCESS, 0, 5));
	for (intptr_t i = 0; i < count; i++)
		MUST0(pthread_create(&threads[i], NULL, body, (void *)i));
	while (up < count)
		usleep(1000);
	if (!available[3])
		wl_skip("no scheduling class may be set here");
	wl_ready_wait();
	CHECK(getpriority(PRIO_PROCESS, 0) == 5, "nice of the main thread is %d", getpriority(PRIO_PROCESS, 0));
	go = 1;
	for (int i = 0; i < count; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_pass();
}
