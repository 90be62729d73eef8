// SPDX-License-Identifier: Apache-2.0
/* A parent inside vfork: it cannot stop while its child lives in its memory.  The child execs a little later.  In
 * another thread the child has a vforked child of its own, for which it waits in the same way. */
/* wl: same=no */
/* not compared: its children come and go */
#include "wl.h"

/* The child borrows the memory for a moment, then becomes another program: over and over, so that most dumps fall into
 * the middle of a vfork. */
static volatile int rounds[2];
static volatile bool done;

static void *spawner(void *argument)
{
	volatile int *count = argument;
	while (!done) {
		pid_t child = vfork();
		if (child == 0) {
			if (count == &rounds[1] && vfork() > 0) /* where that one execs, this one goes on */
				_exit(0);
			struct timespec nap = {0, 30000000};
			nanosleep(&nap, NULL);
			++*count;
			execl("/bin/true", "true", (char *)NULL);
			_exit(9);
		}
		int status;
		CHECK(child > 0, "vfork: %s", strerror(errno));
		CHECK(waitpid(child, &status, 0) == child && status == 0, "the vforked child ended with 0x%x", status);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[2];
	int before[2];
	wl_begin();
	for (int i = 0; i < 2; i++)
		MUST0(pthread_create(&threads[i], NULL, spawner, (void *)&rounds[i]));
	while (rounds[0] < 2 || rounds[1] < 2)
		usleep(1000);
	wl_ready_wait();
	memcpy(before, (void *)rounds, sizeof before);
	for (int i = 0; i < 2; i++) {
		for (int j = 0; j < 5000 && rounds[i] < before[i] + 2; j++)
			usleep(1000);
		CHECK(rounds[i] >= before[i] + 2, "no vfork of thread %d comes to its end any more", i);
	}
	done = true;
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_pass();
}
