// SPDX-License-Identifier: Apache-2.0
/* oom_score_adj: another in each process. */
/* wl: */
#include "wl.h"

static void adjust(const char *value)
{
	int fd = MUST(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
	MUST(write(fd, value, strlen(value)));
	close(fd);
}

static int adjusted(void)
{
	char text[16] = "";
	int fd = MUST(open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC));
	MUST(read(fd, text, 15));
	close(fd);
	return atoi(text);
}

static void child(void *argument)
{
	if (argument)
		adjust(argument);
	int was = adjusted();
	wl_child_ready_wait();
	CHECK(adjusted() == was, "oom_score_adj is %d, was %d", adjusted(), was);
	_exit(0);
}

int main(void)
{
	wl_begin();
	adjust("200"); /* a higher one first: a lower one than one's parent's may not be set everywhere */
	pid_t one = wl_child(child, "500"), two = wl_child(child, "1000"), three = wl_child(child, NULL);
	wl_ready_wait();
	CHECK(adjusted() == 200, "oom_score_adj is %d, was 200", adjusted());
	wl_end(one);
	wl_end(two);
	wl_end(three);
	wl_pass();
}
