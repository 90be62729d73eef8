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
        call->result = system_call(call->nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
        if (call->result < 0 && call->result >= -MAX_ERRNO && !(call->how & MAY_FAIL))
            break;
    }
    *(volatile word *)&list->done = done;
}

__attribute__((noreturn, used)) void executor(struct area *area)
{
    word bell;
    do {
        run(area->work);
        // not write: to a controller that died it would leave SIGPIPE pending in the victim
        system_call(NR_sendto, area->reply_fd, (word)&area->tag, BELL, MSG_NOSIGNAL, 0, 0);
    } while (system_call(NR_read, area->wait_fd, (word)&bell, BELL, 0, 0, 0) == BELL);
    if (area->undo)
        run(area->undo);
    sigreturn(area->home);
}
