// SPDX-License-Identifier: Apache-2.0
/* argv and environ as setproctitle leaves them: overwritten, moved by PR_SET_MM, auxv read back. */
/* wl: */
#include "wl.h"

#include <sys/auxv.h>
#ifndef PR_SET_MM
#define PR_SET_MM 35
#endif

static size_t slurp(const char *path, char *to, size_t size)
{
	int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	ssize_t n = MUST(read(fd, to, size));
	close(fd);
	return (size_t)n;
}

int main(int argc, char **argv)
{
	static char before[3][65536], now[65536];
	size_t sizes[3];
	wl_begin();
	/* the old way: over argv itself */
	memset(argv[0], 0, strlen(argv[0]));
	strcpy(argv[0], "renamed: worker");
	(void)argc;
	/* the new way: argument and environment areas elsewhere */
	char *area = MUST(mmap(NULL, 2 * WL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	memcpy(area, "first\0second\0", 13);
	memcpy(area + WL_PAGE, "NAME=value\0OTHER=\0", 18);
	MUST(prctl(PR_SET_MM, 9 /* PR_SET_MM_ARG_END */, area + 13, 0, 0) == -1 && errno == EINVAL ? 0 : 0);
	if (prctl(PR_SET_MM, 8 /* PR_SET_MM_ARG_START */, area, 0, 0) == 0) {
		MUST(prctl(PR_SET_MM, 9, area + 13, 0, 0));
		MUST(prctl(PR_SET_MM, 10 /* PR_SET_MM_ENV_START */, area + WL_PAGE, 0, 0));
		MUST(prctl(PR_SET_MM, 11 /* PR_SET_MM_ENV_END */, area + WL_PAGE + 18, 0, 0));
	}
	sizes[0] = slurp("/proc/self/cmdline", before[0], sizeof before[0]);
	sizes[1] = slurp("/proc/self/environ", before[1], sizeof before[1]);
	sizes[2] = slurp("/proc/self/auxv", before[2], sizeof before[2]);
	wl_ready_wait();
	CHECK(slurp("/proc/self/cmdline", now, sizeof now) == sizes[0] && !memcmp(now, before[0], sizes[0]), "cmdline is %s", now);
	CHECK(slurp("/proc/self/environ", now, sizeof now) == sizes[1] && !memcmp(now, before[1], sizes[1]), "environ is %s", now);
	CHECK(slurp("/proc/self/auxv", now, sizeof now) == sizes[2] && !memcmp(now, before[2], sizes[2]), "auxv differs");
	CHECK(!strcmp(argv[0], "renamed: worker"), "argv[0] is %s", argv[0]);
	CHECK(getauxval(AT_PAGESZ) == (unsigned long)sysconf(_SC_PAGESIZE), "page size");
	wl_pass();
}
