// SPDX-License-Identifier: Apache-2.0
/* Calls that were interrupted before the dump, and that the kernel continues by restart_syscall: it keeps to itself
 * which call that was.  Those that lose nothing when they are begun anew do not end with EINTR (sys_poll.c); but on
 * ppc64le their first argument is lost.  Others may end with EINTR, but no thread makes another call than its own, even
 * where the instructions in front of that load the number of another, as compilers have it when calls share one. */
/* wl: */
#include "wl.h"
#include <semaphore.h>

#ifdef __powerpc64__
#define MAY_END(n) ((n) == -1 && errno == EINTR)
#else
#define MAY_END(n) false
#endif

static int forever[2], timed[2];
static sem_t posted;
static volatile int waits;
static volatile sig_atomic_t over;

/* Makes call `nr` by an instruction that is jumped to: those in front of it would make another. */
#ifdef __x86_64__
#define JUMPED(nr, a, b, c, other)                                                                                     \
	({                                                                                                             \
		long result = (nr);                                                                                    \
		__asm__ volatile("xor %%r10d, %%r10d\n jmp 2f\n mov $" WL_STR(other) ", %%eax\n 2: syscall"            \
				 : "+a"(result)                                                                        \
				 : "D"(a), "S"(b), "d"(c)                                                              \
				 : "rcx", "r10", "r11", "memory");                                                     \
		result;                                                                                                \
	})
#elif defined(__aarch64__)
#define JUMPED(nr, a, b, c, other)                                                                                     \
	({                                                                                                             \
		register long x8 __asm__("x8") = (nr), x0 __asm__("x0") = (long)(a);                                   \
		register long x1 __asm__("x1") = (long)(b), x2 __asm__("x2") = (long)(c), x3 __asm__("x3") = 0;        \
		__asm__ volatile("b 2f\n mov x8, #" WL_STR(other) "\n 2: svc #0"                                       \
				 : "+r"(x0), "+r"(x8)                                                                  \
				 : "r"(x1), "r"(x2), "r"(x3)                                                           \
				 : "memory");                                                                          \
		x0;                                                                                                    \
	})
#else
#define JUMPED(nr, a, b, c, other)                                                                                     \
	({                                                                                                             \
		long result = syscall(nr, a, b, c, 0);                                                                 \
		result == -1 ? -errno : result;                                                                        \
	})
#endif
#ifdef __x86_64__
#define NR_CLOSE 3
#define NR_OTHER 7 /* poll */
#else
#define NR_CLOSE 57
#define NR_OTHER 73 /* ppoll */
#endif

static const struct {
	long seconds, nanoseconds;
} ten_minutes = {600, 0};

static void handler(int number) { (void)number; }

static void *sleep_by_a_jump(void *argument)
{
	struct {
		long seconds, nanoseconds;
	} rest;
	int which = *(int *)argument;
	waits++;
	do {
		long r;
		if (which == 0) /* its first argument is a descriptor, too */
			r = JUMPED(SYS_clock_nanosleep, (long)CLOCK_REALTIME, 0L, &ten_minutes, NR_CLOSE);
		else if (which == 1)
			r = JUMPED(SYS_nanosleep, &ten_minutes, &rest, 0L, NR_OTHER);
		else
			r = JUMPED(SYS_nanosleep, &ten_minutes, NULL, 0L, NR_OTHER);
		EXPECT(r == -EINTR, "sleep %d gives %ld", which, r);
		if (r != -EINTR)
			break;
	} while (!over);
	return NULL;
}

static void *wait_on(void *argument)
{
	int *ends = argument;
	struct pollfd p = {ends[0], POLLIN, 0};
	const char *how = ends == timed ? "with a timeout" : "for ever";
	waits++;
	int n;
	do
		n = poll(&p, 1, ends == timed ? 600000 : -1);
	while (MAY_END(n));
	EXPECT(n == 1 && p.revents == POLLIN, "poll %s gives %d: %s", how, n, n < 0 ? strerror(errno) : "");
	return NULL;
}

static void *wait_for_semaphore(void *unused)
{
	struct timespec end;
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 600;
	waits++;
	int n;
	do
		n = sem_timedwait(&posted, &end); // FUTEX_WAIT_BITSET, until a point in time
	while (MAY_END(n));
	EXPECT(n == 0, "sem_timedwait gives %d: %s", n, strerror(errno));
	return unused;
}

/* All threads are stopped by job control, and continued. */
static void interrupt_all(void)
{
	int status;
	pid_t self = getpid(), child = fork();
	MUST(child);
	if (child == 0) {
		char path[64], line[256] = "";
		snprintf(path, sizeof path, "/proc/%d/stat", self);
		while (!strstr(line, ") T ")) {
			FILE *file = fopen(path, "r");
			if (!file || !fgets(line, sizeof line, file))
				_exit(1);
			fclose(file);
		}
		_exit(kill(self, SIGCONT));
	}
	raise(SIGSTOP);
	MUST(waitpid(child, &status, 0));
	CHECK(status == 0, "the child's status is %#x", status);
}

int main(void)
{
	pthread_t a, b, c, sleeps[3];
	int which[3] = {0, 1, 2};
	struct stat input;
	wl_begin();
	MUST(fstat(0, &input));
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler}, NULL));
	MUST(pipe(forever));
	MUST(pipe(timed));
	MUST0(sem_init(&posted, 0, 0));
	MUST0(pthread_create(&a, NULL, wait_on, forever));
	MUST0(pthread_create(&b, NULL, wait_on, timed));
	MUST0(pthread_create(&c, NULL, wait_for_semaphore, NULL));
	for (int i = 0; i < 3; i++)
		MUST0(pthread_create(&sleeps[i], NULL, sleep_by_a_jump, &which[i]));
	while (waits < 6)
		usleep(1000);
	usleep(50000); /* until they sleep */
	interrupt_all();
	usleep(50000);
	wl_ready_wait();
	MUST(write(forever[1], "x", 1));
	MUST(write(timed[1], "x", 1));
	MUST0(sem_post(&posted));
	MUST0(pthread_join(a, NULL));
	MUST0(pthread_join(b, NULL));
	MUST0(pthread_join(c, NULL));
	over = 1;
	for (int i = 0; i < 3; i++)
		while (pthread_tryjoin_np(sleeps[i], NULL)) {
			pthread_kill(sleeps[i], SIGUSR1);
			usleep(10000);
		}
	CHECK(fstat(0, &input) == 0, "descriptor 0 was closed");
	wl_pass();
}
