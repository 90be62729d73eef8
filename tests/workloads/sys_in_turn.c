// SPDX-License-Identifier: Apache-2.0
/* Threads that are out of a call and in the next one while they are being stopped: each reads in turn from two sockets
 * with a time limit, or sleeps in turn for a while and until a point in time.  No thread gets another socket's byte.
 * As the program catches no signals, sleeps until a point in time do not end with EINTR, nor early; and neither do
 * the reads end with EINTR, but on aarch64, where it may be that nobody can say which socket it was. */
/* wl: same=no */
/* not compared: the threads run on */
#include "wl.h"
#include <stdatomic.h>
#include <sys/socket.h>

#ifdef __aarch64__
#define MAY_END(n) ((n) == -1 && errno == EINTR)
#else
#define MAY_END(n) false
#endif

enum { READERS = 32, SLEEPERS = 24 };
static int sockets[READERS][2][2];
static atomic_bool over;

static void *reads(void *argument)
{
	int(*mine)[2] = argument;
	wl_spins();
	for (int which = 0; !over; which ^= 1) {
		char byte = '?';
		ssize_t n;
		do
			n = recv(mine[which][0], &byte, 1, 0);
		while (MAY_END(n));
		CHECK(n == 1, "a read of socket %c has failed: %s", "ab"[which], n ? strerror(errno) : "at its end");
		CHECK(byte == "ab"[which] || over, "a read of socket %c has got %c", "ab"[which], byte);
	}
	return NULL;
}

static void *feeds(void *argument)
{
	(void)argument;
	wl_spins();
	for (unsigned random = 1; !over;)
		for (int which = 0; which < 2; which++)
			for (int i = 0; i < READERS; i++) {
				random = random * 1103515245 + 12345;
				send(sockets[i][which][1], &"ab"[which], 1, MSG_DONTWAIT);
				if (random >> 20 & 1)
					usleep(random >> 22 & 255);
			}
	return NULL;
}

static int64_t until(int64_t nanoseconds)
{
	struct timespec t = {nanoseconds / 1000000000, nanoseconds % 1000000000};
	return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int64_t now(void)
{
	struct timespec t;
	MUST(clock_gettime(CLOCK_MONOTONIC, &t));
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *sleeps(void *argument)
{
	(void)argument;
	wl_spins();
	while (!over) {
		usleep(1000);
		int64_t end = now() + 3000000;
		int error = (int)until(end);
		CHECK(!error, "a sleep until a point in time has ended: %s", strerror(error));
		CHECK(now() >= end, "a sleep until a point in time has ended early");
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[READERS + SLEEPERS], feeder;
	struct timeval limit = {600, 0};
	if (sysconf(_SC_NPROCESSORS_ONLN) == 1)
		wl_skip("one processor: nobody runs on between being looked at and being stopped");
	wl_begin();
	for (int i = 0; i < READERS; i++) {
		for (int which = 0; which < 2; which++) {
			MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets[i][which]));
			MUST(setsockopt(sockets[i][which][0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
		}
		MUST0(pthread_create(&threads[i], NULL, reads, sockets[i]));
	}
	for (int i = 0; i < SLEEPERS; i++)
		MUST0(pthread_create(&threads[READERS + i], NULL, sleeps, NULL));
	MUST0(pthread_create(&feeder, NULL, feeds, NULL));
	usleep(300000);
	wl_ready_wait();
	usleep(300000);
	over = true;
	MUST0(pthread_join(feeder, NULL));
	for (int i = 0; i < READERS; i++)
		for (int which = 0; which < 2; which++)
			MUST(send(sockets[i][which][1], &"ab"[which], 1, MSG_DONTWAIT));
	for (int i = 0; i < READERS + SLEEPERS; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_pass();
}
