// SPDX-License-Identifier: Apache-2.0
/* Timer slack, another in each thread. */
/* wl: */
#include "wl.h"

static volatile int up, go;

static void *body(void *argument)
{
	long slack = (long)argument;
	MUST(prctl(PR_SET_TIMERSLACK, slack));
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	while (!go)
		usleep(50000);
	CHECK(prctl(PR_GET_TIMERSLACK) == slack, "timer slack is %d, was %ld", prctl(PR_GET_TIMERSLACK), slack);
	return NULL;
}

int main(void)
{
	static const long slacks[] = {1, 50000, 777777, 1000000000};
	pthread_t threads[4];
	wl_begin();
	for (int i = 0; i < 4; i++)
		MUST0(pthread_create(&threads[i], NULL, body, (void *)slacks[i]));
	while (up < 4)
		usleep(1000);
	MUST(prctl(PR_SET_TIMERSLACK, 123456));
	wl_ready_wait();
	CHECK(prctl(PR_GET_TIMERSLACK) == 123456, "timer slack is %d, was 123456", prctl(PR_GET_TIMERSLACK));
	go = 1;
	for (int i = 0; i < 4; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_pass();
}
