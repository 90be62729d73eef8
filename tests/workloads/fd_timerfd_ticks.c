// SPDX-License-Identifier: Apache-2.0
/* Periodic timerfds that expired several times and were not read: the count is kept and goes on, the period too. */
/* wl: */
#include "fd.h"
#include <sys/timerfd.h>

int main(void)
{
	enum { period = 50000000, long_period = 10000 /* seconds */ };
	uint64_t ticks = 0;
	wl_begin();
	int slow = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), fast = MUST(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK));
	/* four ticks within a moment (one, soon after a boot), then none for hours: the first expiry lies in the past */
	struct timespec now;
	const long past = 7 * long_period / 2;
	MUST(clock_gettime(CLOCK_MONOTONIC, &now));
	MUST(timerfd_settime(slow, TFD_TIMER_ABSTIME, &(struct itimerspec){{long_period, 0}, {now.tv_sec > past ? now.tv_sec - past : 1, 0}}, NULL));
	MUST(poll(&(struct pollfd){.fd = slow, .events = POLLIN}, 1, 5000));
	char value[40], path[40];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", slow);
	struct itimerspec left;
	MUST(timerfd_gettime(slow, &left)); /* brings the count up to date */
	CHECK(wl_proc_field(path, "ticks", value, sizeof value), "no ticks");
	uint64_t before = strtoull(value, NULL, 10);
	MUST(timerfd_settime(fast, 0, &(struct itimerspec){{0, period}, {0, period}}, NULL));
	nanosleep(&(struct timespec){0, 4 * period}, NULL);
	wl_ready_wait();
	CHECK(read(slow, &ticks, 8) == 8, "no ticks: %s", strerror(errno));
	CHECK(ticks == before, "%" PRIu64 " ticks, were %" PRIu64, ticks, before);
	fd_expect_error(slow, EAGAIN, "slow timer");
	struct itimerspec later;
	MUST(timerfd_gettime(slow, &later));
	CHECK(later.it_value.tv_sec <= left.it_value.tv_sec && later.it_value.tv_sec >= left.it_value.tv_sec - 1000,
	      "next tick in %ld s, was %ld", (long)later.it_value.tv_sec, (long)left.it_value.tv_sec);
	CHECK(read(fast, &ticks, 8) == 8 && ticks >= 4, "the fast timer tells %" PRIu64 " ticks", ticks);
	MUST(poll(&(struct pollfd){.fd = fast, .events = POLLIN}, 1, 5000));
	CHECK(read(fast, &ticks, 8) == 8 && ticks >= 1, "the fast timer stands still");
	wl_pass();
}
