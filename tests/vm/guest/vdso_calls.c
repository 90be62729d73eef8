// SPDX-License-Identifier: Apache-2.0
/* Calls every function of its vDSO, by the address that it had at the beginning (as a C library does), and compares what
 * each says with what the kernel says: vdso_calls DIR.  A thread of it is inside the vDSO much of its time.  It has a timer
 * on CLOCK_BOOTTIME and sleeps until points in time of that clock; and, where the kernel's own code returns from signal
 * handlers, handlers without a restorer.  What it has found by its clocks it writes to words of DIR/counters (vdso_calls.py
 * reads them), what was wrong to DIR/calls, at SIGTERM. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define INTERVAL 50000000LL
#define COMPLAINTS 3 /* of one kind */
#ifdef SYS_clock_gettime64
#define GETTIME SYS_clock_gettime64
#define GETRES SYS_clock_getres_time64
#else
#define GETTIME SYS_clock_gettime
#define GETRES SYS_clock_getres
#endif

struct wide { int64_t seconds, nanoseconds; };
struct narrow { long seconds, nanoseconds; };
enum { ROUNDS = 5, CLOCKS = 16 }; /* words of DIR/counters */

struct function {
	char name[64];
	uintptr_t at;
	int complaints;
} functions[64], timers = {"timers on CLOCK_BOOTTIME"}, handlers = {"handlers without a restorer"};

static const int clocks[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11};
static volatile sig_atomic_t ended, handled;
static volatile uint64_t *words;
static char said[65536];
static size_t length;

static void end(int number) { (void)number, ended = 1; }

static void wrong(struct function *function, const char *format, ...)
{
	va_list more;
	if (function->complaints++ >= COMPLAINTS || length > sizeof said - 1000)
		return;
	length += sprintf(said + length, "%s\"%s: ", length ? ", " : "", function->name);
	va_start(more, format);
	length += vsnprintf(said + length, 800, format, more);
	va_end(more);
	length += sprintf(said + length, "\"");
}

static int kernel(long number, int which, int64_t *nanoseconds)
{
	struct wide now;
	if (syscall(number, which, &now))
		return 0; /* an alarm clock, where nothing could wake the machine */
	*nanoseconds = now.seconds * SECOND + now.nanoseconds;
	return 1;
}

static int64_t boottime(void)
{
	int64_t now = 0;
	kernel(GETTIME, CLOCK_BOOTTIME, &now);
	return now;
}

static int is(const char *name, const char *what)
{
	if (!strncmp(name, "__vdso_", 7))
		name += 7;
	else if (!strncmp(name, "__kernel_", 9))
		name += 9;
	return !strcmp(name, what);
}

static void find_functions(void)
{
	const char *vdso = (const char *)getauxval(AT_SYSINFO_EHDR);
	const ElfW(Ehdr) *head = (const void *)vdso;
	if (!vdso)
		return;
	const ElfW(Phdr) *parts = (const void *)(vdso + head->e_phoff);
	const ElfW(Shdr) *sections = (const void *)(vdso + head->e_shoff);
	uintptr_t bias = (uintptr_t)vdso;
	int known = 0;
	for (int i = head->e_phnum - 1; i >= 0; i--)
		if (parts[i].p_type == PT_LOAD)
			bias = (uintptr_t)vdso - parts[i].p_vaddr;
	for (int i = 0; i < head->e_shnum; i++) {
		if (sections[i].sh_type != SHT_DYNSYM)
			continue;
		const char *names = vdso + sections[sections[i].sh_link].sh_offset;
		const ElfW(Sym) *symbol = (const void *)(vdso + sections[i].sh_offset);
		for (size_t left = sections[i].sh_size / sizeof *symbol; left; left--, symbol++) {
			int type = symbol->st_info & 15;
			if (!symbol->st_shndx || symbol->st_shndx >= SHN_LORESERVE || (type != STT_FUNC && type != STT_NOTYPE))
				continue;
			if (!names[symbol->st_name] || known == sizeof functions / sizeof *functions - 1)
				continue;
			snprintf(functions[known].name, sizeof functions->name, "%s", names + symbol->st_name);
			functions[known++].at = bias + symbol->st_value;
		}
	}
}

/* What the function says of a clock, or of its resolution. */
static int64_t through(struct function *f, int is_wide, int which)
{
	struct wide wide = {0, 0};
	struct narrow narrow = {0, 0};
	int result = ((int (*)(int, void *))f->at)(which, is_wide ? (void *)&wide : (void *)&narrow);
	if (result)
		wrong(f, "clock %d: %d", which, result);
	return is_wide ? wide.seconds * SECOND + wide.nanoseconds : narrow.seconds * SECOND + narrow.nanoseconds;
}

static void compare(struct function *f, int is_wide, int which)
{
	int64_t before, after;
	int coarse = which == CLOCK_REALTIME_COARSE || which == CLOCK_MONOTONIC_COARSE;
	if (!kernel(GETTIME, which, &before))
		return;
	int64_t first = through(f, is_wide, which);
	kernel(GETTIME, which, &after);
	if (coarse ? first > after || after > through(f, is_wide, which) : before > first || first > after)
		wrong(f, "clock %d: it says %" PRId64 ", the kernel %" PRId64 " to %" PRId64, which, first, before, after);
}

static void compare_resolution(struct function *f, int is_wide, int which)
{
	int64_t kernels, its;
	if (kernel(GETRES, which, &kernels) && (its = through(f, is_wide, which)) != kernels)
		wrong(f, "clock %d: it says %" PRId64 ", the kernel %" PRId64, which, its, kernels);
}

static void compare_seconds(struct function *f)
{
	long (*call)(long *) = (long (*)(long *))f->at;
	long stored = 0, before = call(NULL), after;
	int64_t now;
	kernel(GETTIME, CLOCK_REALTIME_COARSE, &now);
	after = call(&stored);
	if (before > now / SECOND || now / SECOND > after || stored != after)
		wrong(f, "it says %ld to %ld, stores %ld; the kernel says %" PRId64, before, after, stored, now / SECOND);
}

static void compare_microseconds(struct function *f)
{
	struct narrow now = {0, 0};
	int zone[2];
	int64_t before, after;
	kernel(GETTIME, CLOCK_REALTIME, &before);
	int result = ((int (*)(void *, void *))f->at)(&now, zone);
	kernel(GETTIME, CLOCK_REALTIME, &after);
	int64_t its = (int64_t)now.seconds * 1000000 + now.nanoseconds;
	if (result || before / 1000 > its || its > after / 1000)
		wrong(f, "%d: it says %" PRId64 ", the kernel %" PRId64 " to %" PRId64, result, its, before / 1000, after / 1000);
}

static void compare_processor(struct function *f)
{
	unsigned before, after, nodes, cpu, node;
	int tries = 0, result;
	do {
		cpu = node = ~0u;
		syscall(SYS_getcpu, &before, &nodes, NULL);
		result = ((int (*)(unsigned *, unsigned *, void *))f->at)(&cpu, &node, NULL);
		syscall(SYS_getcpu, &after, &nodes, NULL);
	} while ((result || before != cpu || after != cpu || node != nodes) && ++tries < 100); /* it moves */
	if (tries == 100)
		wrong(f, "%d: it says %u of node %u, the kernel %u of node %u", result, cpu, node, after, nodes);
}

static void compare_random(struct function *f)
{
	typedef ssize_t (*getrandom_t)(void *, size_t, unsigned, void *, size_t);
	static struct { uint32_t size, prot, flags, reserved[13]; } state;
	static void *memory = MAP_FAILED;
	static char none[32];
	getrandom_t call = (getrandom_t)f->at;
	char one[32] = "", other[32] = "";
	if (memory == MAP_FAILED) {
		call(NULL, 0, 0, &state, ~(size_t)0);
		memory = mmap(NULL, 1 << 16, state.prot, state.flags, -1, 0);
	}
	if (call(one, sizeof one, 0, memory, state.size) != sizeof one || call(other, sizeof other, 0, memory, state.size) != sizeof other)
		wrong(f, "no random numbers");
	else if (!memcmp(one, other, sizeof one) || !memcmp(one, none, sizeof none))
		wrong(f, "the same numbers again");
}

/* ppc64le */
static void compare_others(struct function *f)
{
	static char code[4096];
	static uint64_t frequency;
	if (is(f->name, "sync_dicache"))
		((void (*)(void *, void *))f->at)(code, code + sizeof code);
	if (is(f->name, "get_tbfreq")) {
		uint64_t now = ((uint64_t(*)(void))f->at)();
		if (!now || (frequency && now != frequency))
			wrong(f, "it says %" PRIu64 ", and said %" PRIu64, now, frequency);
		frequency = now;
	}
	if (is(f->name, "get_syscall_map")) {
		unsigned calls = 0, *map = ((unsigned *(*)(unsigned *))f->at)(&calls);
		if (calls < 300 || !map || !*map)
			wrong(f, "it says %u", calls);
	}
}

static void call(struct function *f)
{
	int is_wide = is(f->name, "clock_gettime64") || is(f->name, "clock_getres_time64");
	for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
		if (is(f->name, "clock_gettime") || is(f->name, "clock_gettime64"))
			compare(f, is_wide, clocks[i]);
		if (is(f->name, "clock_getres") || is(f->name, "clock_getres_time64"))
			compare_resolution(f, is_wide, clocks[i]);
	}
	if (is(f->name, "time"))
		compare_seconds(f);
	else if (is(f->name, "gettimeofday"))
		compare_microseconds(f);
	else if (is(f->name, "getcpu"))
		compare_processor(f);
	else if (is(f->name, "getrandom"))
		compare_random(f);
	else
		compare_others(f);
}

static void burn(long turns)
{
	for (volatile long turn = 0; turn < turns; turn++)
		;
}

static int64_t used(void)
{
	int64_t now = 0;
	kernel(GETTIME, CLOCK_THREAD_CPUTIME_ID, &now);
	return now;
}

/* As long in the vDSO as in a loop of its own.  In clock_getres, which comes to its end: clock_gettime begins anew whenever
 * the kernel updates its data, and in an emulated machine that comes sooner than some instructions, one at a time, are
 * done. */
static void *spin(void *function)
{
	int (*getres)(int, void *) = (int (*)(int, void *))((struct function *)function)->at;
	struct narrow now;
	prctl(PR_SET_NAME, "spin");
	nice(19);
	int64_t begun = used();
	for (int i = 0; i < 20000; i++)
		getres(CLOCK_MONOTONIC, &now);
	int64_t between = used();
	burn(200000);
	int64_t turns = 10 * (between - begun) / (used() - between + 1);
	while (!ended) {
		getres(CLOCK_MONOTONIC, &now);
		burn(turns);
	}
	return NULL;
}

#ifndef __x86_64__
static void count(int number) { (void)number, handled++; }

static void handle(void)
{
	struct { void (*handler)(int); unsigned long flags; void (*restorer)(void); unsigned long mask[8 / sizeof(long)]; } action = {count};
	for (unsigned flags = 0; flags <= SA_SIGINFO; flags += SA_SIGINFO) { /* there are two trampolines */
		int before = handled;
		action.flags = flags;
		if (syscall(SYS_rt_sigaction, SIGUSR2, &action, NULL, 8) || raise(SIGUSR2) || handled != before + 1)
			wrong(&handlers, "with flags %x", flags);
	}
}
#else
static void handle(void) {}
#endif

int main(int argc, char **argv)
{
	pthread_t thread;
	sigset_t term;
	struct itimerspec every = {{0, INTERVAL}, {0, INTERVAL}};
	uint64_t expired, total = 0;
	int timer = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK);
	/* A restore goes on with timers some seconds later than with clocks, and these go ahead without time namespaces. */
	int64_t bound = 2000 * SECOND;
	if (argc != 2 || chdir(argv[1]))
		return 1;
	int file = open("counters", O_RDWR | O_CREAT, 0600);
	ftruncate(file, sysconf(_SC_PAGESIZE));
	words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	find_functions();
	signal(SIGTERM, end);
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL); /* it is for this thread, which sleeps */
	for (struct function *f = functions; f->at; f++)
		if (is(f->name, "clock_getres")) {
			pthread_create(&thread, NULL, spin, f);
			break;
		}
	pthread_sigmask(SIG_UNBLOCK, &term, NULL);
	timerfd_settime(timer, 0, &every, NULL);
	int64_t begun = boottime();
	while (!ended) {
		for (struct function *f = functions; f->at; f++)
			call(f);
		handle();
		for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
			int64_t now = 0;
			kernel(GETTIME, clocks[i], &now);
			words[CLOCKS + clocks[i]] = now;
		}
		words[ROUNDS]++;
		int64_t until = boottime() + INTERVAL, now;
		struct timespec deadline = {until / SECOND, until % SECOND};
		while (clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &deadline, NULL) == EINTR && !ended)
			;
		now = boottime();
		if ((now < until && !ended) || now > until + bound)
			wrong(&timers, "a sleep until %" PRId64 " ended at %" PRId64, until, now);
		if (read(timer, &expired, sizeof expired) == sizeof expired)
			total += expired;
		now = boottime() - begun - total * INTERVAL;
		if (now < -bound || now > bound)
			wrong(&timers, "after %" PRIu64 " intervals it is %" PRId64 " too late", total, now);
	}
	file = open("calls", O_WRONLY | O_CREAT | O_TRUNC, 0600);
	dprintf(file, "[%s]", said);
	return 0;
}
