// SPDX-License-Identifier: Apache-2.0
/* poll(2) that nobody interrupts does not end with EINTR, dumped and restored or not: programs that catch no signals do
 * not expect it.  A caught signal still ends it. */
/* wl: */
#include "wl.h"

static int forever[2], timed[2], nothing[2];
static volatile sig_atomic_t caught;
static volatile int waits;

static void handler(int number) { (void)number; caught++; }

static void *wait_on(void *argument)
{
	int *ends = argument;
	struct pollfd p = {ends[0], POLLIN, 0};
	waits++;
	const char *how = ends == timed ? "with a timeout" : "for ever";
	int n;
	while ((n = poll(&p, 1, ends == timed ? 600000 : -1)) == -1 && errno == EINTR)
		EXPECT(false, "poll %s was interrupted", how);
	CHECK(n == 1 && p.revents == POLLIN, "poll %s gives %d: %s", how, n, n < 0 ? strerror(errno) : "");
	return NULL;
}

static void *wait_for_signal(void *argument)
{
	struct pollfd p = {nothing[0], POLLIN, 0};
	(void)argument;
	waits++;
	do {
		int n = poll(&p, 1, -1);
		CHECK(n == -1 && errno == EINTR, "poll that a signal is sent to gives %d: %s", n, n < 0 ? strerror(errno) : "");
		EXPECT(caught, "poll was interrupted before its signal was sent");
	} while (!caught);
	CHECK(caught == 1, "the handler has run %d times", caught);
	return NULL;
}

int main(void)
{
	pthread_t a, b, c;
	wl_begin();
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler}, NULL));
	MUST(pipe(forever));
	MUST(pipe(timed));
	MUST(pipe(nothing));
	MUST0(pthread_create(&a, NULL, wait_on, forever));
	MUST0(pthread_create(&b, NULL, wait_on, timed));
	MUST0(pthread_create(&c, NULL, wait_for_signal, NULL));
	while (waits < 3)
		usleep(1000);
	usleep(50000); /* until they sleep */
	wl_ready_wait();
	usleep(50000);
	MUST0(pthread_kill(c, SIGUSR1));
	MUST0(pthread_join(c, NULL));
	MUST(write(forever[1], "x", 1));
	MUST(write(timed[1], "x", 1));
	MUST0(pthread_join(a, NULL));
	MUST0(pthread_join(b, NULL));
	wl_pass();
}
