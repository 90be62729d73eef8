// SPDX-License-Identifier: Apache-2.0
//
// The only native code of Torpor: a loop that runs lists of system calls inside another task.
//
// It is freestanding and position independent, and is copied into the task page by page; tools/build_executor.py turns
// it into one small blob an architecture.  torpor/engine/area.py writes and reads the structures below and explains how
// the loop is entered, how it waits, and how a task goes home by itself when the controller dies.
//
// Registers at entry: first argument = struct area, second = its bytes, third = PROT_READ|PROT_WRITE.  The prologue
// passes them to mprotect at once: the area was mapped r-x (W+X may be forbidden), and there is no stack before that.

typedef unsigned long word;
typedef long sword;

enum { RESULT = 1, LOAD32 = 2, ARG_BITS = 2, MAY_FAIL = 1 << 15 };
enum { MAX_ERRNO = 4095, BELL = 8, MSG_NOSIGNAL = 0x4000 };

struct call { word nr, arg[6], how; sword result; };
struct list { word count, done; struct call calls[]; };
struct area {
    int reply_fd, wait_fd;       // where a finished list is announced; where the next command, or end-of-file, comes from
    word tag;                    // the eight bytes that are sent on reply_fd
    struct list *work, *undo;    // undo may be null
    word home;                   // stack pointer for rt_sigreturn
};

static sword system_call(word nr, word a, word b, word c, word d, word e, word f);
__attribute__((noreturn)) static void sigreturn(word stack_pointer);

#if defined(__x86_64__)
enum { NR_read = 0, NR_sendto = 44 };
__asm__(".section .text.start,\"ax\"\n.globl _start\n_start: mov $10,%eax\n syscall\n jmp executor\n.text\n");
static inline __attribute__((always_inline)) sword system_call(word nr, word a, word b, word c, word d, word e, word f)
{
    sword result;
    register word r10 __asm__("r10") = d;
    register word r8 __asm__("r8") = e;
    register word r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
static inline __attribute__((always_inline)) void sigreturn(word stack_pointer)
{
    __asm__ volatile("mov %0,%%rsp\n mov $15,%%eax\n syscall" : : "r"(stack_pointer) : "memory");
    __builtin_unreachable();
}
#elif defined(__aarch64__)
enum { NR_read = 63, NR_sendto = 206 };
__asm__(".section .text.start,\"ax\"\n.globl _start\n_start: mov x19,x0\n mov x8,#226\n svc #0\n mov x0,x19\n b executor\n.text\n");
static inline __attribute__((always_inline)) sword system_call(word nr, word a, word b, word c, word d, word e, word f)
{
    register word x8 __asm__("x8") = nr;
    register word x0 __asm__("x0") = a;
    register word x1 __asm__("x1") = b;
    register word x2 __asm__("x2") = c;
    register word x3 __asm__("x3") = d;
    register word x4 __asm__("x4") = e;
    register word x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return (sword)x0;
}
static inline __attribute__((always_inline)) void sigreturn(word stack_pointer)
{
    __asm__ volatile("mov sp,%0\n mov x8,#139\n svc #0" : : "r"(stack_pointer) : "memory");
    __builtin_unreachable();
}
#elif defined(__arm__)
enum { NR_read = 3, NR_sendto = 290 };
enum { GET_THREAD_REGISTER = 0xE0000, SET_THREAD_REGISTER };  // no calls: the kernel answers ENOSYS to these numbers
__asm__(".section .text.start,\"ax\"\n.arm\n.globl _start\n_start: mov r4,r0\n mov r7,#125\n svc #0\n mov r0,r4\n b executor\n.text\n");
static inline __attribute__((always_inline)) sword system_call(word nr, word a, word b, word c, word d, word e, word f)
{
    register word r7 __asm__("r7") = nr;
    register word r0 __asm__("r0") = a;
    register word r1 __asm__("r1") = b;
    register word r2 __asm__("r2") = c;
    register word r3 __asm__("r3") = d;
    register word r4 __asm__("r4") = e;
    register word r5 __asm__("r5") = f;
    if (nr == GET_THREAD_REGISTER) {
        __asm__ volatile("mrc p15,0,%0,c13,c0,2" : "=r"(*(volatile word *)a));
        return 0;
    }
    if (nr == SET_THREAD_REGISTER) {
        __asm__ volatile("mcr p15,0,%0,c13,c0,2" : : "r"(a));
        return 0;
    }
    __asm__ volatile("svc #0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5) : "memory");
    return (sword)r0;
}
static inline __attribute__((always_inline)) void sigreturn(word stack_pointer)
{
    __asm__ volatile("mov sp,%0\n mov r7,#173\n svc #0" : : "r"(stack_pointer) : "memory");
    __builtin_unreachable();
}
#elif defined(__powerpc64__)
enum { NR_read = 3, NR_sendto = 335 };
__asm__(".section .text.start,\"ax\"\n.globl _start\n_start: mr 31,3\n li 0,125\n sc\n mr 3,31\n b executor\n.text\n");
static inline __attribute__((always_inline)) sword system_call(word nr, word a, word b, word c, word d, word e, word f)
{
    register word r0 __asm__("r0") = nr;
    register word r3 __asm__("r3") = a;
    register word r4 __asm__("r4") = b;
    register word r5 __asm__("r5") = c;
    register word r6 __asm__("r6") = d;
    register word r7 __asm__("r7") = e;
    register word r8 __asm__("r8") = f;
    // an error is told by the summary overflow bit, its number is positive
    __asm__ volatile("sc\n bns+ 1f\n neg 3,3\n1:"
                     : "+r"(r0), "+r"(r3), "+r"(r4), "+r"(r5), "+r"(r6), "+r"(r7), "+r"(r8)
                     : : "r9", "r10", "r11", "r12", "cr0", "ctr", "memory");
    return (sword)r3;
}
static inline __attribute__((always_inline)) void sigreturn(word stack_pointer)
{
    __asm__ volatile("mr 1,%0\n li 0,172\n sc" : : "r"(stack_pointer) : "memory");
    __builtin_unreachable();
}
#elif defined(__s390x__)
#define BLOCK_ARGUMENTS 90       // mmap takes the address of its six arguments
enum { NR_read = 3, NR_sendto = 369 };
__asm__(".section .text.start,\"ax\"\n.globl _start\n_start: lgr %r6,%r2\n svc 125\n lgr %r2,%r6\n jg executor\n.text\n");
static inline __attribute__((always_inline)) sword system_call(word nr, word a, word b, word c, word d, word e, word f)
{
    register word r1 __asm__("r1") = nr;
    register word r2 __asm__("r2") = a;
    register word r3 __asm__("r3") = b;
    register word r4 __asm__("r4") = c;
    register word r5 __asm__("r5") = d;
    register word r6 __asm__("r6") = e;
    register word r7 __asm__("r7") = f;
    __asm__ volatile("svc 0" : "+d"(r2) : "d"(r1), "d"(r3), "d"(r4), "d"(r5), "d"(r6), "d"(r7) : "memory");
    return (sword)r2;
}
static inline __attribute__((always_inline)) void sigreturn(word stack_pointer)
{
    __asm__ volatile("lgr %%r15,%0\n svc 173" : : "d"(stack_pointer) : "memory");
    __builtin_unreachable();
}
#else
#error "Torpor has no executor for this architecture yet: add its system call, its sigreturn and its _start above"
#endif

static inline __attribute__((always_inline)) void run(struct list *list)
{
    word done;
    for (done = 0; done < list->count; done++) {
        struct call *call = &list->calls[done];
        word arg[6], how = call->how;
        for (int i = 0; i < 6; i++, how >>= ARG_BITS) {
            word value = call->arg[i];
            if (how & RESULT)
                value = list->calls[value].result;
            else if (how & LOAD32)
                value = *(volatile int *)value;
            arg[i] = value;
        }
        word first = arg[0];
#ifdef BLOCK_ARGUMENTS
        if (call->nr == BLOCK_ARGUMENTS)
            first = (word)arg;
#endif
        call->result = system_call(call->nr, first, arg[1], arg[2], arg[3], arg[4], arg[5]);
        if (call->result < 0 && call->result >= -MAX_ERRNO && !(call->how & MAY_FAIL))
            break;
    }
    *(volatile word *)&list->done = done;
}

__attribute__((noreturn, used)) void executor(struct area *area)
{
    word bell[BELL / sizeof(word)];
    for (;;) {
        run(area->work);
        // not write: to a controller that died it would leave SIGPIPE pending in the victim
        system_call(NR_sendto, area->reply_fd, (word)&area->tag, BELL, MSG_NOSIGNAL, 0, 0);
        do {  // what comes with descriptors is all zeros: a program that failed before it took them has left it behind
            if (system_call(NR_read, area->wait_fd, (word)bell, BELL, 0, 0, 0) != BELL) {
                if (area->undo)
                    run(area->undo);
                sigreturn(area->home);
            }
        } while (!bell[0]);
    }
}
