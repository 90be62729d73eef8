// SPDX-License-Identifier: Apache-2.0
/* The main thread has ended by pthread_exit, the others live on: /proc/PID has no maps, no descriptors, and no exe. */
/* wl: */
#include "wl.h"

static pthread_barrier_t both;
static volatile uint64_t counter;

static void *helper(void *unused)
{
	(void)unused;
	pthread_barrier_wait(&both);
	uint64_t value = 0;
	for (;;) {
		value++;
		counter = value;
		if (counter != value)
			wl_fail("a store got lost");
		if (value % 1000 == 0)
			usleep(50000);
	}
	return NULL;
}

static void *survivor(void *unused)
{
	char path[64], state[64];
	(void)unused;
	pthread_barrier_wait(&both);
	snprintf(path, sizeof path, "/proc/self/task/%d/status", getpid());
	do {
		usleep(1000);
		wl_proc_field(path, "State", state, sizeof state);
	} while (state[0] != 'Z');
	int null = MUST(open("/dev/null", O_RDWR | O_CLOEXEC));
	pid_t self = gettid();
	wl_ready_wait();
	CHECK(gettid() == self, "thread id is %d, was %d", gettid(), self);
	wl_proc_field(path, "State", state, sizeof state);
	CHECK(state[0] == 'Z', "the leader is %s", state);
	CHECK(fcntl(null, F_GETFD) == FD_CLOEXEC, "a descriptor is lost");
	uint64_t before = counter;
	for (int i = 0; i < 5000 && counter == before; i++)
		usleep(1000);
	CHECK(counter != before, "the other thread does not run");
	wl_pass();
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	MUST0(pthread_barrier_init(&both, NULL, 3));
	MUST0(pthread_create(&thread, NULL, survivor, NULL));
	MUST0(pthread_create(&thread, NULL, helper, NULL));
	pthread_barrier_wait(&both);
	pthread_exit(NULL);
}
