// SPDX-License-Identifier: Apache-2.0
/* What every C workload shares: the protocol with the harness (ready, SIGTERM, verdict), children, patterns.
 *
 *     int main(void) {
 *         wl_begin();                 // SIGTERM blocked from here on
 *         ... set the object up, with MUST(call) ...
 *         wl_ready_wait();            // says "ready", sleeps until SIGTERM: here the checkpoint happens
 *         CHECK(object == as_left, "is %d, was %d", ...);
 *         wl_pass();
 *     }
 *
 * Children (wl_child) say when they are set up (wl_child_ready), sleep until their own SIGTERM (wl_wait), check, and
 * return; the parent ends them with wl_end(pid).  All talk on stdout, which is opened for appending:
 * one write a line.  A header comment with "wl:" gives options: see tests/harness/workload.py. */
#ifndef WL_H
#define WL_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WL_UNUSED __attribute__((unused))

/* Whole pages on every kernel of this architecture. */
#ifdef __powerpc64__
#define WL_PAGE 65536
#else
#define WL_PAGE 4096
#endif

/* clone(2) as fork(2) with other flags.  s390x takes the stack first. */
#ifdef __s390x__
#define WL_CLONE(flags) syscall(SYS_clone, 0L, (long)(flags), 0L, 0L, 0L)
#else
#define WL_CLONE(flags) syscall(SYS_clone, (long)(flags), 0L, 0L, 0L, 0L)
#endif

static WL_UNUSED void wl_vsay(const char *prefix, const char *format, va_list args)
{
	char line[1024];
	int n = snprintf(line, sizeof line, "%s", prefix);
	n += vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
	if (n > (int)sizeof line - 2)
		n = (int)sizeof line - 2;
	line[n++] = '\n';
	if (write(1, line, (size_t)n) != n)
		_exit(3);
}

static WL_UNUSED __attribute__((format(printf, 1, 2))) void wl_say(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	wl_vsay("", format, args);
	va_end(args);
}

/* The verdict "fail: why", from any process or thread of the workload. */
static WL_UNUSED __attribute__((format(printf, 1, 2), noreturn)) void wl_fail(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	wl_vsay("fail: ", format, args);
	va_end(args);
	_exit(1);
}

/* This machine cannot run the workload (no AVX-512, no rights ...): only before `ready`. */
static WL_UNUSED __attribute__((format(printf, 1, 2), noreturn)) void wl_skip(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	wl_vsay("skip: ", format, args);
	va_end(args);
	_exit(77);
}

/* How many of something: a fifth of it on an emulated machine, where each takes twenty times as long. */
static WL_UNUSED int wl_many(int all) { return getenv("WL_FEWER") ? all / 10 : all; }

#define WL_STR2(x) #x
#define WL_STR(x) WL_STR2(x)
/* CHECK(condition, "what is wrong", ...) */
#define CHECK(condition, ...)                                                                                          \
	do {                                                                                                           \
		if (!(condition))                                                                                      \
			wl_fail(__FILE_NAME__ ":" WL_STR(__LINE__) ": " __VA_ARGS__);                                  \
	} while (0)
static WL_UNUSED volatile sig_atomic_t wl_wrong;
/* EXPECT(condition, ...): as CHECK, but goes on: the verdict names everything that is wrong. */
#define EXPECT(condition, ...)                                                                                         \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			wl_say("fail: " __FILE_NAME__ ":" WL_STR(__LINE__) ": " __VA_ARGS__);                          \
			wl_wrong = 1;                                                                                  \
		}                                                                                                      \
	} while (0)
/* MUST(call): a call that must not fail (-1 or MAP_FAILED); its value. */
#define MUST(call)                                                                                                     \
	({                                                                                                             \
		__typeof__(call) wl_value = (call);                                                                    \
		if ((long)wl_value == -1)                                                                              \
			wl_fail(__FILE_NAME__ ":" WL_STR(__LINE__) ": %s: %s", #call, strerror(errno));                \
		wl_value;                                                                                              \
	})
/* MUST0(call): a call that returns an error number (pthread_*). */
#define MUST0(call)                                                                                                    \
	do {                                                                                                           \
		int wl_error = (call);                                                                                 \
		if (wl_error)                                                                                          \
			wl_fail(__FILE_NAME__ ":" WL_STR(__LINE__) ": %s: %s", #call, strerror(wl_error));             \
	} while (0)

/* Call it in a thread that is going to spin: it leaves the processor to whoever has something to do. */
static WL_UNUSED void wl_spins(void) { MUST(setpriority(PRIO_PROCESS, 0, 19)); }

static WL_UNUSED sigset_t wl_set(int signal)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal);
	return set;
}

/* First call of main: SIGTERM is blocked here, so in every thread and child too. */
static WL_UNUSED void wl_begin(void)
{
	sigset_t set = wl_set(SIGTERM);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
}

static WL_UNUSED void wl_ready(void) { wl_say("ready"); }

/* Sleep until SIGTERM comes; returns who sent it. */
static WL_UNUSED pid_t wl_wait(void)
{
	sigset_t set = wl_set(SIGTERM);
	siginfo_t info;
	int got;
	do
		got = sigwaitinfo(&set, &info);
	while (got == -1 && errno == EINTR);
	CHECK(got == SIGTERM, "sigwaitinfo gave %d: %s", got, strerror(errno));
	return info.si_pid;
}

static WL_UNUSED void wl_ready_wait(void)
{
	wl_ready();
	wl_wait();
}

static WL_UNUSED __attribute__((noreturn)) void wl_pass(void)
{
	if (wl_wrong)
		_exit(1);
	wl_say("pass");
	_exit(0);
}

/* ---- children ---- */
static WL_UNUSED int wl_child_pipe[2] = {-1, -1};

/* Fork a child that runs `body`; returns when the child has called wl_child_ready (or fails).  Leaves no descriptor. */
static WL_UNUSED pid_t wl_child(void (*body)(void *), void *argument)
{
	char byte;
	MUST(pipe2(wl_child_pipe, O_CLOEXEC));
	pid_t child = MUST(fork());
	if (child == 0) {
		close(wl_child_pipe[0]);
		body(argument);
		_exit(0);
	}
	close(wl_child_pipe[1]);
	ssize_t n = read(wl_child_pipe[0], &byte, 1);
	CHECK(n == 1, "child %d ended before it was ready", child);
	close(wl_child_pipe[0]);
	return child;
}

static WL_UNUSED void wl_child_ready(void)
{
	CHECK(write(wl_child_pipe[1], "x", 1) == 1, "cannot tell the parent");
	close(wl_child_pipe[1]);
}

static WL_UNUSED void wl_child_ready_wait(void)
{
	wl_child_ready();
	wl_wait();
}

/* Wait for a child and check that it left with 0. */
static WL_UNUSED void wl_reap(pid_t child)
{
	int status;
	pid_t got;
	do
		got = waitpid(child, &status, 0);
	while (got == -1 && errno == EINTR);
	CHECK(got == child, "waitpid(%d): %s", child, strerror(errno));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with status 0x%x", child, (unsigned)status);
}

/* SIGTERM to a child, then wl_reap. */
static WL_UNUSED void wl_end(pid_t child)
{
	MUST(kill(child, SIGTERM));
	wl_reap(child);
}

/* ---- patterns: a different one for every seed, none of its words 0 ---- */
static WL_UNUSED uint64_t wl_word(uint64_t seed, uint64_t i)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + i + 1;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	x ^= x >> 31;
	return x ? x : 1;
}

static WL_UNUSED void wl_fill(void *at, size_t length, uint64_t seed)
{
	uint64_t *word = at;
	for (size_t i = 0; i < length / 8; i++)
		word[i] = wl_word(seed, i);
}

static WL_UNUSED void wl_same(const void *at, size_t length, uint64_t seed, const char *what)
{
	const uint64_t *word = at;
	for (size_t i = 0; i < length / 8; i++)
		if (word[i] != wl_word(seed, i))
			wl_fail("%s: byte %zu (address %p) is %016" PRIx64 ", was %016" PRIx64, what, i * 8, (const void *)&word[i],
				word[i], wl_word(seed, i));
}

static WL_UNUSED void wl_zero(const void *at, size_t length, const char *what)
{
	const unsigned char *byte = at;
	for (size_t i = 0; i < length; i++)
		if (byte[i])
			wl_fail("%s: byte %zu is %02x, was 0", what, i, byte[i]);
}

/* ---- small readers of /proc ---- */

/* The value of a line "KEY:\tVALUE" in a /proc file such as status; false if there is no such line. */
static WL_UNUSED bool wl_proc_field(const char *path, const char *key, char *value, size_t size)
{
	char line[4096];
	size_t length = strlen(key);
	FILE *file = fopen(path, "re");
	CHECK(file, "cannot open %s: %s", path, strerror(errno));
	bool found = false;
	while (!found && fgets(line, sizeof line, file))
		if (!strncmp(line, key, length) && line[length] == ':') {
			char *start = line + length + 1;
			start += strspn(start, " \t");
			start[strcspn(start, "\n")] = 0;
			snprintf(value, size, "%s", start);
			found = true;
		}
	fclose(file);
	return found;
}

/* The letter of a task's state (proc(5)). */
static WL_UNUSED char wl_state(pid_t tid)
{
	char path[64], state[64] = "?";
	snprintf(path, sizeof path, "/proc/%d/status", tid);
	wl_proc_field(path, "State", state, sizeof state);
	return state[0];
}

/* Sum in kB of the smaps field `key` (e.g. "Pss") over the areas that touch [start, end); `flag`, if given, is a VmFlags
 * word of which *flagged counts the areas that have it. */
static WL_UNUSED long wl_smaps_kb(const void *start, const void *end, const char *key, const char *flag, int *flagged)
{
	char line[4096];
	uintptr_t from, to;
	long sum = 0;
	bool inside = false;
	size_t length = strlen(key);
	FILE *file = fopen("/proc/self/smaps", "re");
	CHECK(file, "cannot open smaps: %s", strerror(errno));
	if (flagged)
		*flagged = 0;
	while (fgets(line, sizeof line, file)) {
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2 && strchr(line, '-') < strchr(line, ' '))
			inside = from < (uintptr_t)end && to > (uintptr_t)start;
		else if (inside && !strncmp(line, key, length) && line[length] == ':')
			sum += atol(line + length + 1);
		else if (inside && flagged && flag && !strncmp(line, "VmFlags:", 8)) {
			char word[8];
			snprintf(word, sizeof word, " %s ", flag);
			line[strcspn(line, "\n")] = ' ';
			*flagged += strstr(line, word) != NULL;
		}
	}
	fclose(file);
	return sum;
}

#endif
