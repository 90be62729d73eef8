// SPDX-License-Identifier: Apache-2.0
/* clear_child_tid: the word that the kernel clears, and wakes waiters on, when a thread ends: where the C library has put
 * it (pthread_join waits there) and, in another thread, elsewhere. */
/* wl: */
#include "wl.h"
#include <linux/futex.h>

static volatile int go, moved;

static void *body(void *elsewhere)
{
	if (elsewhere) {
		syscall(SYS_set_tid_address, &moved);
		__atomic_store_n(&moved, gettid(), __ATOMIC_SEQ_CST);
	}
	while (!go)
		usleep(50000);
	if (elsewhere)
		syscall(SYS_exit, 0);
	return NULL;
}

int main(void)
{
	pthread_t joined, other;
	struct timespec end, patience = {10, 0};
	int value;
	wl_begin();
	MUST0(pthread_create(&joined, NULL, body, NULL));
	MUST0(pthread_create(&other, NULL, body, (void *)1));
	while (!moved)
		usleep(1000);
	wl_ready_wait();
	CHECK(moved, "cleared too early");
	go = 1;
	while ((value = moved)) {
		long n = syscall(SYS_futex, &moved, FUTEX_WAIT, value, &patience, NULL, 0L);
		CHECK(n == 0 || errno == EAGAIN || errno == EINTR, "nobody wakes: %s", strerror(errno));
	}
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 10;
	MUST0(pthread_timedjoin_np(joined, NULL, &end));
	wl_pass();
}
