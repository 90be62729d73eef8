// SPDX-License-Identifier: Apache-2.0
/* A parent inside vfork: it cannot stop while its child lives in its memory.  The child execs a little later. */
/* wl: same=no */
/* not compared: its children come and go */
#include "wl.h"

/* The child borrows the memory for a moment, then becomes another program: over and over, so that most dumps fall into
 * the middle of a vfork. */
static volatile int rounds;
static volatile bool done;

static void *spawner(void *unused)
{
	(void)unused;
	while (!done) {
		pid_t child = vfork();
		if (child == 0) {
			struct timespec nap = {0, 30000000};
			nanosleep(&nap, NULL);
			rounds++;
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
	pthread_t thread;
	wl_begin();
	MUST0(pthread_create(&thread, NULL, spawner, NULL));
	while (rounds < 2)
		usleep(1000);
	wl_ready_wait();
	int before = rounds;
	for (int i = 0; i < 5000 && rounds < before + 2; i++)
		usleep(1000);
	CHECK(rounds >= before + 2, "no vfork comes to its end any more");
	done = true;
	MUST0(pthread_join(thread, NULL));
	wl_pass();
}
