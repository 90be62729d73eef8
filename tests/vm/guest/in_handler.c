// SPDX-License-Identifier: Apache-2.0
/* Three processes that wait inside signal handlers until the first byte of DIR/go is not 0; DIR/result says that all have
 * returned from there: in_handler DIR.  A child waits on another stack, from which nothing leads to the signal's frame
 * ("far"); for another the handler's stack is in shared memory.  They use no vector registers, and there is no C library
 * in it, which would choose what it does by the CPU that it begins on. */
#include <asm/mman.h>
#include <asm/signal.h>
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/time_types.h>

enum { size = 65536 };
enum kind { USUAL, FAR, SHARED, kinds };
static const char *const held[kinds] = {"holding", "far", "shared"}; /* files that say so */
static int go;
static enum kind kind;
static char other[size] __attribute__((aligned(64)));

#ifdef __aarch64__
__asm__(".globl _start\n_start: mov x0, sp\n bl begin");

static long call(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = 0, x5 __asm__("x5") = 0;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

static void on_another_stack(void (*function)(void))
{
	register void (*x20)(void) __asm__("x20") = function;
	register char *x21 __asm__("x21") = other + size;
	__asm__ volatile("mov x19, sp\n mov sp, x21\n blr x20\n mov sp, x19"
			 :
			 : "r"(x20), "r"(x21)
			 : "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
			   "x16", "x17", "x18", "x19", "x30", "memory", "cc");
}
#else
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin");
__asm__("back: mov $15, %eax\n syscall"); /* rt_sigreturn */
void back(void);

static long call(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = 0, r9 __asm__("r9") = 0;
	__asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return number;
}

static void on_another_stack(void (*function)(void))
{
	register void (*r12)(void) __asm__("r12") = function;
	register char *r13 __asm__("r13") = other + size;
	__asm__ volatile("mov %%rsp, %%rbx\n mov %%r13, %%rsp\n call *%%r12\n mov %%rbx, %%rsp"
			 :
			 : "r"(r12), "r"(r13)
			 : "rax", "rcx", "rdx", "rsi", "rdi", "rbx", "r8", "r9", "r10", "r11", "memory", "cc");
}
#endif

static void say(const char *name, const char *text, long length)
{
	long file = call(__NR_openat, AT_FDCWD, (long)name, O_CREAT | O_WRONLY, 0600);
	call(__NR_write, file, (long)text, length, 0);
	call(__NR_close, file, 0, 0, 0);
}

static void wait_for_go(void)
{
	struct __kernel_timespec pause = {0, 20000000};
	char first = 0;
	say(held[kind], "yes", 3);
	do {
		call(__NR_nanosleep, (long)&pause, 0, 0, 0);
		call(__NR_pread64, go, (long)&first, 1, 0);
	} while (!first);
}

static void wait_inside(int number)
{
	(void)number;
	if (kind == FAR)
		on_another_stack(wait_for_go);
	else
		wait_for_go();
}

static void be_interrupted(void)
{
	struct sigaction action = {.sa_handler = wait_inside};
	if (kind == SHARED) {
		stack_t shared = {.ss_size = size};
		shared.ss_sp = (void *)call(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
		call(__NR_sigaltstack, (long)&shared, 0, 0, 0);
		action.sa_flags = SA_ONSTACK;
	}
#ifdef __x86_64__
	action.sa_flags |= SA_RESTORER;
	action.sa_restorer = back;
#endif
	call(__NR_rt_sigaction, SIGUSR1, (long)&action, 0, sizeof action.sa_mask);
	call(__NR_kill, call(__NR_getpid, 0, 0, 0, 0), SIGUSR1, 0, 0);
}

static void start(enum kind of_child)
{
	struct __kernel_timespec pause = {0, 20000000};
	if (!call(__NR_clone, SIGCHLD, 0, 0, 0)) {
		kind = of_child;
		be_interrupted();
		call(__NR_exit_group, 0, 0, 0, 0);
	}
	while (call(__NR_faccessat, AT_FDCWD, (long)held[of_child], 0, 0) < 0)
		call(__NR_nanosleep, (long)&pause, 0, 0, 0);
}

void begin(char **stack)
{
	int status = 0;
	call(__NR_chdir, (long)stack[2], 0, 0, 0);
	go = call(__NR_openat, AT_FDCWD, (long)"go", O_CREAT | O_RDWR, 0600);
	call(__NR_write, go, (long)"", 1, 0);
	start(FAR);
	start(SHARED);
	be_interrupted();
	for (int child = 0; child < 2; child++) {
		call(__NR_wait4, -1, (long)&status, 0, 0);
		if (status)
			call(__NR_exit_group, 1, 0, 0, 0);
	}
	say("result.new", "{\"vectors\": []}", 15);
	call(__NR_renameat2, AT_FDCWD, (long)"result.new", AT_FDCWD, (long)"result");
	call(__NR_exit_group, 0, 0, 0, 0);
	__builtin_unreachable();
}
