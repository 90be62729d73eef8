// SPDX-License-Identifier: Apache-2.0
/* timerfds: clocks, relative and absolute, periodic, disarmed, expired and not yet read. */
/* wl: */
#include "fd.h"
#include <sys/timerfd.h>

static struct itimerspec left(int fd)
{
	struct itimerspec spec;
	MUST(timerfd_gettime(fd, &spec));
	return spec;
}

static int64_t ns(struct timespec time) { return time.tv_sec * 1000000000LL + time.tv_nsec; }

static int timer(clockid_t clock, int flags, int settime, time_t value, time_t interval)
{
	int fd = MUST(timerfd_create(clock, flags));
	struct itimerspec spec = {{interval, interval ? 5 : 0}, {value, value ? 7 : 0}};
	if (settime & TFD_TIMER_ABSTIME) {
		struct timespec now;
		MUST(clock_gettime(clock, &now));
		spec.it_value.tv_sec += now.tv_sec;
	}
	MUST(timerfd_settime(fd, settime, &spec, NULL));
	return fd;
}

int main(void)
{
	enum { count = 9 };
	wl_begin();
	int fds[count] = {
		timer(CLOCK_MONOTONIC, 0, 0, 1000, 0),
		timer(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK, 0, 1000, 77),
		timer(CLOCK_REALTIME, 0, TFD_TIMER_ABSTIME, 1000, 0),
		timer(CLOCK_REALTIME, TFD_NONBLOCK, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, 1000, 0),
		timer(CLOCK_BOOTTIME, 0, 0, 500, 0),
		timer(CLOCK_MONOTONIC, 0, TFD_TIMER_ABSTIME, 1000, 500),
		timer(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 0, 0),
		timer(CLOCK_REALTIME, TFD_NONBLOCK, 0, 0, 33),
		timer(CLOCK_BOOTTIME, TFD_CLOEXEC, TFD_TIMER_ABSTIME, 1000, 1),
	};
	struct fd_facts was[count];
	struct itimerspec before[count];
	struct timespec start, end;
	int spent = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	MUST(timerfd_settime(spent, 0, &(struct itimerspec){{0, 0}, {0, 1}}, NULL));
	MUST(poll(&(struct pollfd){.fd = spent, .events = POLLIN}, 1, 5000));
	MUST(clock_gettime(CLOCK_MONOTONIC, &start));
	for (int i = 0; i < count; i++) {
		was[i] = fd_look(fds[i]);
		before[i] = left(fds[i]);
	}
	wl_ready_wait();
	MUST(clock_gettime(CLOCK_MONOTONIC, &end));
	int64_t passed = ns(end) - ns(start);
	for (int i = 0; i < count; i++) {
		struct itimerspec now = left(fds[i]);
		char what[20];
		snprintf(what, sizeof what, "timer %d", i);
		fd_check(&was[i], what);
		CHECK(ns(now.it_interval) == ns(before[i].it_interval), "%s: interval %ld, was %ld", what,
		      (long)ns(now.it_interval), (long)ns(before[i].it_interval));
		CHECK(ns(now.it_value) <= ns(before[i].it_value), "%s: left %ld, was %ld", what, (long)ns(now.it_value),
		      (long)ns(before[i].it_value));
		CHECK(ns(now.it_value) >= ns(before[i].it_value) - passed - 2000000000, "%s: left %ld, was %ld, passed %ld", what,
		      (long)ns(now.it_value), (long)ns(before[i].it_value), (long)passed);
	}
	fd_expect_error(fds[6], EAGAIN, "disarmed");
	uint64_t ticks = 0;
	CHECK(read(spent, &ticks, 8) == 8 && ticks == 1, "expired timer tells %" PRIu64 " ticks", ticks);
	fd_expect_error(spent, EAGAIN, "expired timer");
	MUST(timerfd_settime(fds[0], 0, &(struct itimerspec){{0, 0}, {0, 1000000}}, NULL));
	CHECK(read(fds[0], &ticks, 8) == 8 && ticks == 1, "a timer set anew gives %" PRIu64, ticks);
	wl_pass();
}
