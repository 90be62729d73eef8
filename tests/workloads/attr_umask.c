// SPDX-License-Identifier: Apache-2.0
/* umask and working directory: another in each process. */
/* wl: */
#include "wl.h"

static void child(void *argument)
{
	mode_t mask = (mode_t)(intptr_t)argument;
	char name[32], was[PATH_MAX], now[PATH_MAX];
	umask(mask);
	snprintf(name, sizeof name, "dir %o", mask);
	MUST(mkdir(name, 0700));
	MUST(chdir(name));
	CHECK(getcwd(was, sizeof was), "getcwd");
	wl_child_ready_wait();
	CHECK(getcwd(now, sizeof now) && !strcmp(was, now), "cwd is %s, was %s", now, was);
	int fd = MUST(open("file", O_CREAT | O_EXCL | O_RDWR, 0777));
	struct stat facts;
	MUST(fstat(fd, &facts));
	CHECK((facts.st_mode & 0777) == (0777 & ~mask), "a new file has mode 0%o, umask was 0%o", facts.st_mode & 0777, mask);
	MUST(unlink("file"));
	_exit(0);
}

int main(void)
{
	wl_begin();
	umask(0);
	pid_t one = wl_child(child, (void *)0077), two = wl_child(child, (void *)0777), three = wl_child(child, (void *)0);
	umask(0123);
	wl_ready_wait();
	CHECK(umask(0) == 0123, "umask was 0123");
	wl_end(one);
	wl_end(two);
	wl_end(three);
	wl_pass();
}
