// SPDX-License-Identifier: Apache-2.0
/* What /proc shows of timerfds: clock, settime flags, ticks. */
/* wl: */
#include "fd.h"
#include <sys/timerfd.h>

static void look(int fd, long facts[4], const char *what)
{
	static const char *const keys[] = {"clockid", "ticks", "settime flags"};
	char path[40], value[80];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	for (int i = 0; i < 3; i++) {
		CHECK(wl_proc_field(path, keys[i], value, sizeof value), "%s: no %s", what, keys[i]);
		facts[i] = strtol(value, NULL, 0);
	}
}

int main(void)
{
	static const struct {
		int clock, flags;
		time_t value;
		const char *name;
	} cases[] = {
		{CLOCK_MONOTONIC, 0, 1000, "relative"},
		{CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, 1000, "absolute"},
		{CLOCK_REALTIME, TFD_TIMER_ABSTIME, 1000, "realtime absolute"},
		{CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, 1000, "cancelled when the clock is set"},
		{CLOCK_BOOTTIME, 0, 1000, "boot time"},
		{CLOCK_MONOTONIC, 0, 0, "disarmed"},
		{CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, -5, "absolute, expired"},
	};
	enum { count = sizeof cases / sizeof *cases };
	long before[count][4], after[4];
	int fds[count];
	wl_begin();
	for (int i = 0; i < count; i++) {
		struct itimerspec spec = {{0, 0}, {cases[i].value, 0}};
		struct timespec now;
		fds[i] = MUST(timerfd_create(cases[i].clock, TFD_NONBLOCK));
		MUST(clock_gettime(cases[i].clock, &now));
		if (cases[i].flags)
			spec.it_value.tv_sec += now.tv_sec;
		MUST(timerfd_settime(fds[i], cases[i].flags, &spec, NULL));
	}
	MUST(poll(&(struct pollfd){.fd = fds[count - 1], .events = POLLIN}, 1, 5000));
	for (int i = 0; i < count; i++)
		look(fds[i], before[i], cases[i].name);
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		look(fds[i], after, cases[i].name);
		for (int j = 0; j < 3; j++)
			CHECK(before[i][j] == after[j], "%s: fact %d is %ld, was %ld", cases[i].name, j, after[j], before[i][j]);
	}
	uint64_t ticks = 0;
	CHECK(read(fds[count - 1], &ticks, 8) == 8 && ticks == 1, "expired timer tells %" PRIu64 " ticks", ticks);
	wl_pass();
}
