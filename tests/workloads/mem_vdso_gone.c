// SPDX-License-Identifier: Apache-2.0
/* No vDSO, as under valgrind: the parent has unmapped the code and kept its data, one child has neither, and another has
 * both, for it executes this program anew.  System calls and their restart go on without. */
/* wl: */
#include "wl.h"

#include <sys/auxv.h>

extern char **environ;

/* The bounds of the areas with this name, which lie one after the other; false: there are none. */
static bool find(const char *name, uintptr_t *start, uintptr_t *end)
{
	char line[4096];
	uintptr_t from, to;
	*start = *end = 0;
	int fd = MUST(open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
	FILE *file = fdopen(fd, "r");
	while (fgets(line, sizeof line, file))
		if (strstr(line, name) && sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
			*start = *start ? *start : from;
			*end = to;
		}
	fclose(file);
	return *start;
}

static void unmap(const char *name)
{
	uintptr_t start, end;
	CHECK(find(name, &start, &end), "there was no %s", name);
	MUST(munmap((void *)start, end - start));
}

static void has(const char *who, bool code, bool data)
{
	uintptr_t start, end;
	EXPECT(find("[vdso]", &start, &end) == code, "%s has %s vDSO", who, code ? "no" : "a");
	EXPECT(find("[vvar", &start, &end) == data, "%s has %s data of the vDSO", who, data ? "no" : "");
	struct timespec now;
	MUST((int)syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now));
}

static void without(void *unused)
{
	(void)unused;
	unmap("[vvar");
	wl_child_ready_wait();
	has("the child", false, false);
	if (wl_wrong)
		_exit(1);
	_exit(0);
}

static void anew(void *unused)
{
	char pipe[16];
	(void)unused;
	snprintf(pipe, sizeof pipe, "%d", MUST(dup(wl_child_pipe[1])));
	MUST(execve("/proc/self/exe", (char *[]){"anew", pipe, NULL}, environ));
}

int main(int argc, char **argv)
{
	wl_begin();
	if (argc > 1) {
		wl_child_pipe[1] = atoi(argv[1]);
		wl_child_ready_wait();
		has("the child that executed", true, true);
		struct timespec now;
		MUST(clock_gettime(CLOCK_MONOTONIC, &now));
		_exit(wl_wrong ? 1 : 0);
	}
	if (!getauxval(AT_SYSINFO_EHDR))
		wl_skip("the kernel gives no vDSO");
#ifdef __arm__ /* refused in words: Torpor steps over ARM's system-call instruction, and its C library has Thumb's only */
	wl_skip("nothing but the vDSO has a system-call instruction in ARM state");
#endif
	unmap("[vdso]");
	pid_t one = wl_child(without, NULL), other = wl_child(anew, NULL);
	wl_ready_wait();
	has("the parent", false, true);
	wl_end(one);
	wl_end(other);
	wl_pass();
}
