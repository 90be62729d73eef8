// SPDX-License-Identifier: Apache-2.0
/* Calls that were interrupted before the dump, and that the kernel continues by restart_syscall: it keeps to itself
 * which call that was.  Those that lose nothing when they are begun anew do not end with EINTR (sys_poll.c); but on
 * ppc64le their first argument is lost. */
/* wl: */
#include "wl.h"
#include <semaphore.h>

#ifdef __powerpc64__
#define MAY_END(n) ((n) == -1 && errno == EINTR)
#else
#define MAY_END(n) false
#endif

static int forever[2], timed[2];
static sem_t posted;
static volatile int waits;

static void *wait_on(void *argument)
{
	int *ends = argument;
	struct pollfd p = {ends[0], POLLIN, 0};
	const char *how = ends == timed ? "with a timeout" : "for ever";
	waits++;
	int n;
	do
		n = poll(&p, 1, ends == timed ? 600000 : -1);
	while (MAY_END(n));
	EXPECT(n == 1 && p.revents == POLLIN, "poll %s gives %d: %s", how, n, n < 0 ? strerror(errno) : "");
	return NULL;
}

static void *wait_for_semaphore(void *unused)
{
	struct timespec end;
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 600;
	waits++;
	int n;
	do
		n = sem_timedwait(&posted, &end); // FUTEX_WAIT_BITSET, until a point in time
	while (MAY_END(n));
	EXPECT(n == 0, "sem_timedwait gives %d: %s", n, strerror(errno));
	return unused;
}

/* All threads are stopped by job control, and continued. */
static void interrupt_all(void)
{
	int status;
	pid_t self = getpid(), child = fork();
	MUST(child);
	if (child == 0) {
		char path[64], line[256] = "";
		snprintf(path, sizeof path, "/proc/%d/stat", self);
		while (!strstr(line, ") T ")) {
			FILE *file = fopen(path, "r");
			if (!file || !fgets(line, sizeof line, file))
				_exit(1);
			fclose(file);
		}
		_exit(kill(self, SIGCONT));
	}
	raise(SIGSTOP);
	MUST(waitpid(child, &status, 0));
	CHECK(status == 0, "the child's status is %#x", status);
}

int main(void)
{
	pthread_t a, b, c;
	wl_begin();
	MUST(pipe(forever));
	MUST(pipe(timed));
	MUST0(sem_init(&posted, 0, 0));
	MUST0(pthread_create(&a, NULL, wait_on, forever));
	MUST0(pthread_create(&b, NULL, wait_on, timed));
	MUST0(pthread_create(&c, NULL, wait_for_semaphore, NULL));
	while (waits < 3)
		usleep(1000);
	usleep(50000); /* until they sleep */
	interrupt_all();
	usleep(50000);
	wl_ready_wait();
	MUST(write(forever[1], "x", 1));
	MUST(write(timed[1], "x", 1));
	MUST0(sem_post(&posted));
	MUST0(pthread_join(a, NULL));
	MUST0(pthread_join(b, NULL));
	MUST0(pthread_join(c, NULL));
	wl_pass();
}
