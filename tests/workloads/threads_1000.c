// SPDX-License-Identifier: Apache-2.0
/* 1,000 threads (100 in guests): thread ids, thread-local storage, stacks, names, and each waits on a futex that must still wake it. */
/* wl: timeout=120 */
#include "wl.h"

enum { most = 1000 };
static int count;
static __thread uint64_t own;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t up = PTHREAD_COND_INITIALIZER, go = PTHREAD_COND_INITIALIZER;
static int ready, going, checked;

static void *body(void *argument)
{
	uint64_t number = (uint64_t)(uintptr_t)argument, local[16];
	char name[16], now[16];
	pid_t tid = gettid();
	own = wl_word(number, 7);
	wl_fill(local, sizeof local, number);
	snprintf(name, sizeof name, "worker %u", (unsigned)number % 10000u);
	MUST(prctl(PR_SET_NAME, name));
	MUST0(pthread_mutex_lock(&lock));
	if (++ready == count)
		MUST0(pthread_cond_signal(&up));
	while (!going)
		MUST0(pthread_cond_wait(&go, &lock));
	checked++;
	MUST0(pthread_mutex_unlock(&lock));
	CHECK(gettid() == tid, "thread %" PRIu64 ": id is %d, was %d", number, gettid(), tid);
	CHECK(own == wl_word(number, 7), "thread %" PRIu64 ": thread-local storage is %" PRIx64, number, own);
	wl_same(local, sizeof local, number, "a thread's stack");
	MUST(prctl(PR_GET_NAME, now));
	CHECK(!strcmp(now, name), "thread %" PRIu64 " is called %s", number, now);
	return argument;
}

int main(void)
{
	pthread_t threads[most];
	pthread_attr_t attributes;
	wl_begin();
	count = wl_many(most);
	MUST0(pthread_attr_init(&attributes));
	MUST0(pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN > 65536 ? PTHREAD_STACK_MIN : 65536));
	for (uintptr_t i = 0; i < (uintptr_t)count; i++)
		MUST0(pthread_create(&threads[i], &attributes, body, (void *)i));
	MUST0(pthread_mutex_lock(&lock));
	while (ready < count)
		MUST0(pthread_cond_wait(&up, &lock));
	MUST0(pthread_mutex_unlock(&lock));
	wl_ready_wait();
	MUST0(pthread_mutex_lock(&lock));
	going = 1;
	MUST0(pthread_cond_broadcast(&go));
	MUST0(pthread_mutex_unlock(&lock));
	for (uintptr_t i = 0; i < (uintptr_t)count; i++) {
		void *value;
		MUST0(pthread_join(threads[i], &value));
		CHECK(value == (void *)i, "thread %" PRIuPTR " returned %p", i, value);
	}
	CHECK(checked == count, "%d threads came through", checked);
	wl_pass();
}
