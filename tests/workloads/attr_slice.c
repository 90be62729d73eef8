// SPDX-License-Identifier: Apache-2.0
/* The slice that a fair thread asks for (sched_setattr's sched_runtime, Linux 6.12), of the process and of one thread. */
/* wl: */
#include "wl.h"

struct attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t min, max;
};

static uint64_t slice(void)
{
	struct attr attr;
	MUST(syscall(SYS_sched_getattr, 0L, &attr, (long)sizeof attr, 0L));
	return attr.runtime;
}

static void ask(int policy, uint64_t runtime)
{
	struct attr attr = {.size = sizeof attr, .policy = (uint32_t)policy, .nice = 3, .runtime = runtime};
	MUST(syscall(SYS_sched_setattr, 0L, &attr, 0L));
}

static pthread_barrier_t barrier;
static void *thread(void *unused)
{
	ask(SCHED_BATCH, 700000);
	CHECK(slice() == 700000, "the slice is %" PRIu64, slice());
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	EXPECT(slice() == 700000, "the thread's slice is %" PRIu64, slice());
	return unused;
}

int main(void)
{
	pthread_t other;
	wl_begin();
	uint64_t usual = slice();
	ask(SCHED_OTHER, 20000000);
	if (slice() != 20000000)
		wl_skip("no slices of one's own");
	pthread_barrier_init(&barrier, NULL, 2);
	MUST0(pthread_create(&other, NULL, thread, NULL));
	pthread_barrier_wait(&barrier);
	wl_ready_wait();
	EXPECT(slice() == 20000000, "the slice is %" PRIu64, slice());
	pthread_barrier_wait(&barrier);
	pthread_join(other, NULL);
	ask(SCHED_OTHER, 0);
	EXPECT(slice() == 20000000 || slice() == usual, "the usual slice is %" PRIu64 ", was %" PRIu64, slice(), usual);
	wl_pass();
}
