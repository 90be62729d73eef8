// SPDX-License-Identifier: Apache-2.0
/* A file in /proc/PID/net, which is shown as deleted once somebody else has looked it up. */
/* The link differs, whoever looks at it: same=no. */
/* wl: same=no */
#include "fd.h"

int main(void)
{
	char was[64] = "", now[64] = "", path[64], link[64] = "";
	struct stat other;
	wl_begin();
	int fd = MUST(open("/proc/self/net/dev", O_RDONLY));
	MUST(pread(fd, was, 60, 0));
	snprintf(path, sizeof path, "/proc/%d/net/dev", getpid());
	MUST(stat(path, &other));
	wl_ready_wait();
	MUST(pread(fd, now, 60, 0));
	CHECK(*was && !strcmp(was, now), "reads '%s', was '%s'", now, was);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	MUST(readlink(path, link, sizeof link - 1));
	CHECK(strstr(link, "/net/dev"), "it is %s", link);
	wl_pass();
}
