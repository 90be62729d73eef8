// SPDX-License-Identifier: Apache-2.0
/* Waits inside a signal handler until the first byte of DIR/go is not 0, and says in DIR/result that it has returned from
 * there: in_handler DIR.  It uses no vector registers, and there is no C library in it, which would choose what it does by
 * the CPU that it begins on. */
#include <asm/signal.h>
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/time_types.h>

static int go;

#ifdef __aarch64__
__asm__(".globl _start\n_start: mov x0, sp\n bl begin");

static long call(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#else
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin");
__asm__("back: mov $15, %eax\n syscall"); /* rt_sigreturn */
void back(void);

static long call(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return number;
}
#endif

static void say(const char *name, const char *text, long length)
{
	long file = call(__NR_openat, AT_FDCWD, (long)name, O_CREAT | O_WRONLY, 0600);
	call(__NR_write, file, (long)text, length, 0);
	call(__NR_close, file, 0, 0, 0);
}

static void wait_inside(int number)
{
	struct __kernel_timespec pause = {0, 20000000};
	char first = 0;
	(void)number;
	say("holding", "yes", 3);
	do {
		call(__NR_nanosleep, (long)&pause, 0, 0, 0);
		call(__NR_pread64, go, (long)&first, 1, 0);
	} while (!first);
}

void begin(char **stack)
{
	struct sigaction action = {.sa_handler = wait_inside};
#ifdef __x86_64__
	action.sa_flags = SA_RESTORER;
	action.sa_restorer = back;
#endif
	call(__NR_chdir, (long)stack[2], 0, 0, 0);
	go = call(__NR_openat, AT_FDCWD, (long)"go", O_CREAT | O_RDWR, 0600);
	call(__NR_write, go, (long)"", 1, 0);
	call(__NR_rt_sigaction, SIGUSR1, (long)&action, 0, sizeof action.sa_mask);
	call(__NR_kill, call(__NR_getpid, 0, 0, 0, 0), SIGUSR1, 0, 0);
	say("result.new", "{\"vectors\": []}", 15);
	call(__NR_renameat2, AT_FDCWD, (long)"result.new", AT_FDCWD, (long)"result");
	call(__NR_exit_group, 0, 0, 0, 0);
	__builtin_unreachable();
}
