// SPDX-License-Identifier: Apache-2.0
//
// A program with much to lose, which can be asked whether it has lost any of it.
//
// Threads sleep in different system calls, one computes in vector registers, timers tick, handlers are
// installed, masks differ, signals are pending, a child answers, another has ended and is not waited for, and a lot of
// memory has a checksum.  Commands come on standard input, one a line:
//
//   check     every thread is made to answer; "ok" or "fail: why"
//   signals   as check, and take the pending signals and queue them again
//   quit      end
//
// "restarts N" in the answer to check counts system calls that returned EINTR though no handler had run.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { READ, POLL, EPOLL, FUTEX, SIGWAIT, SLEEPERS };
enum { QUEUED = 3 };

static char complaint[400];
static atomic_int started, restarts, handled, ticks, posix_ticks;
static atomic_long vector_rounds;
static atomic_int vector_bad;
static atomic_int answers[SLEEPERS];
static int pipes[SLEEPERS][2];
static atomic_int futex_word;
static pthread_t sleepers[SLEEPERS];
static int to_child, from_child, child, ended_child;
static uint64_t *memory, sum_at_start;
static size_t words;

static void fail(const char *format, ...)
{
    va_list list;
    if (complaint[0])
        return;
    va_start(list, format);
    vsnprintf(complaint, sizeof complaint, format, list);
    va_end(list);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    handled++;
    if (number == SIGALRM)
        ticks++;
    else if (number == SIGRTMIN + 2)
        posix_ticks++;
}

static uint64_t checksum(void)
{
    uint64_t sum = 1469598103934665603u;
    for (size_t i = 0; i < words; i++)
        sum = (sum ^ memory[i]) * 1099511628211u;
    return sum;
}

static sigset_t mask_of(int number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGRTMIN + 2);
    sigaddset(&set, SIGRTMIN + 3 + number);
    return set;
}

static int is_mask(int number)
{
    sigset_t is, should = mask_of(number);
    sigemptyset(&is);
    pthread_sigmask(SIG_BLOCK, NULL, &is);
    return !memcmp(&is, &should, 8);
}

static void *sleeper(void *argument)
{
    int kind = (int)(intptr_t)argument, epoll = -1;
    char byte;
    sigset_t mask = mask_of(kind), wanted;
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    started++;
    if (kind == EPOLL) {
        struct epoll_event event = { .events = EPOLLIN };
        epoll = epoll_create1(EPOLL_CLOEXEC);
        epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[kind][0], &event);
    }
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGRTMIN + 3 + kind);
    for (;;) {
        struct pollfd one = { .fd = pipes[kind][0], .events = POLLIN };
        struct epoll_event event;
        int result;
        switch (kind) {
        case READ: result = read(pipes[kind][0], &byte, 1); break;
        case POLL: result = poll(&one, 1, -1); break;
        case EPOLL: result = epoll_wait(epoll, &event, 1, -1); break;
        case SIGWAIT: result = sigwaitinfo(&wanted, NULL); break;
        default: result = syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, NULL, NULL, 0); break;
        }
        if (result < 0 && errno == EINTR && kind != SIGWAIT && kind != EPOLL)
            restarts++; // the kernel itself ends sigtimedwait and epoll_wait when a task is stopped (signal(7))
        if (result < 0 && errno != EINTR && errno != EAGAIN)
            fail("sleeper %d: %s", kind, strerror(errno));
        if (kind == FUTEX && !atomic_exchange(&futex_word, 0))
            continue;
        if (result < 0)
            continue;
        if (kind == POLL || kind == EPOLL)
            (void)!read(pipes[kind][0], &byte, 1);
        if (!is_mask(kind))
            fail("the mask of sleeper %d has changed", kind);
        answers[kind]++;
    }
    return NULL;
}

// Sleeps in nanosleep, which the kernel restarts with what is left.
static void *doze(void *argument)
{
    (void)argument;
    sigset_t mask = mask_of(SLEEPERS);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    started++;
    for (;;) {
        struct timespec long_time = { 3600, 0 };
        if (clock_nanosleep(CLOCK_MONOTONIC, 0, &long_time, NULL) == EINTR)
            restarts++;
    }
    return NULL;
}

typedef uint64_t wide __attribute__((vector_size(32)));

__attribute__((target("avx2"))) static void *spin(void *argument)
{
    (void)argument;
    sigset_t mask = mask_of(SLEEPERS + 1);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    started++;
    wide a = { 1, 2, 3, 4 }, b = a * 3, c = a * 5, d = a * 7;
    wide one = { 1, 1, 1, 1 };
    for (;;) {
        for (int i = 0; i < 20000; i++) {
            a += one, b += one, c += one, d += one;
            __asm__ volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d));
        }
        wide bad = ((b - a) ^ (wide){ 2, 4, 6, 8 }) | ((c - a) ^ (wide){ 4, 8, 12, 16 })
                 | ((d - a) ^ (wide){ 6, 12, 18, 24 });
        for (int i = 0; i < 4; i++)
            if (bad[i])
                vector_bad = 1;
        vector_rounds++;
        // A tenth of a processor's load is enough: it sleeps with its registers full, so they count at all times.
        if (vector_rounds % 10 == 0) {
            static const struct timespec nap = { 0, 1800000 };
            long result = SYS_nanosleep;
            __asm__ volatile("syscall" : "+a"(result), "+x"(a), "+x"(b), "+x"(c), "+x"(d) : "D"(&nap), "S"(NULL)
                             : "rcx", "r11", "memory");
        }
    }
    return NULL;
}

static int wait_for(const char *what, int (*ready)(long), long argument)
{
    struct timespec pause = { 0, 200000 };
    for (int i = 0; i < 50000; i++) {
        if (ready(argument))
            return 1;
        nanosleep(&pause, NULL);
    }
    fail("%s", what);
    return 0;
}

static int answered[SLEEPERS];
static int has_answered(long kind) { return answers[kind] > answered[kind]; }
static int has_ticked(long before) { return ticks > before; }
static int has_ticked_too(long before) { return posix_ticks > before; }
static int has_started(long threads) { return started == threads; }
static int has_turned(long before) { return vector_rounds > before; }

static void check_handlers(void)
{
    struct sigaction action;
    static const int caught[] = { SIGUSR1, SIGUSR2, SIGALRM, SIGTERM };
    for (int i = 0; i < 4; i++) {
        sigaction(caught[i], NULL, &action);
        if (action.sa_sigaction != on_signal || !(action.sa_flags & SA_SIGINFO))
            fail("the handler of signal %d has changed", caught[i]);
    }
    sigaction(SIGHUP, NULL, &action);
    if (action.sa_handler != SIG_IGN)
        fail("SIGHUP is no longer ignored");
    int before = handled;
    raise(SIGUSR2);
    if (handled == before)
        fail("SIGUSR2 was not handled");
    stack_t stack;
    sigaltstack(NULL, &stack);
    if (stack.ss_size != 65536)
        fail("the alternate stack has changed");
}

static void queue_signals(void)
{
    for (int i = 0; i < QUEUED; i++)
        sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 100 + i });
    pthread_kill(pthread_self(), SIGUSR1); // blocked everywhere: stays pending in this thread
}

static void take_signals(void)
{
    struct timespec now = { 0, 0 };
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    for (int i = 0; i < QUEUED; i++) {
        if (sigtimedwait(&set, &info, &now) < 0)
            fail("pending signal %d is lost", i);
        else if (info.si_value.sival_int != 100 + i || info.si_code != SI_QUEUE)
            fail("pending signal %d has changed: value %d, code %d", i, info.si_value.sival_int, info.si_code);
    }
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    if (sigtimedwait(&set, &info, &now) < 0 || info.si_pid != getpid())
        fail("the pending signal of the first thread is lost");
    sigaddset(&set, SIGRTMIN + 1);
    if (sigtimedwait(&set, &info, &now) >= 0)
        fail("a signal %d too many was pending", info.si_signo);
    queue_signals();
}

static void check(int signals)
{
    char byte = 'x';
    sigset_t pending;
    complaint[0] = 0;
    if (!is_mask(SLEEPERS + 2))
        fail("the mask of the first thread has changed");
    sigemptyset(&pending);
    sigpending(&pending);
    if (!sigismember(&pending, SIGUSR1) || !sigismember(&pending, SIGRTMIN + 1))
        fail("pending signals are lost");
    if (signals)
        take_signals();
    check_handlers();
    for (int kind = 0; kind < SLEEPERS; kind++)
        answered[kind] = answers[kind];
    for (int kind = 0; kind < SLEEPERS; kind++) {
        if (kind == FUTEX) {
            futex_word = 1;
            syscall(SYS_futex, &futex_word, FUTEX_WAKE, 1, NULL, NULL, 0);
        } else if (kind == SIGWAIT) {
            pthread_kill(sleepers[kind], SIGRTMIN + 3 + SIGWAIT);
        } else if (write(pipes[kind][1], &byte, 1) != 1)
            fail("the pipe of sleeper %d: %s", kind, strerror(errno));
    }
    for (int kind = 0; kind < SLEEPERS; kind++)
        wait_for("a sleeping thread does not answer", has_answered, kind);
    wait_for("the interval timer does not tick", has_ticked, ticks);
    wait_for("the POSIX timer does not tick", has_ticked_too, posix_ticks);
    wait_for("the computing thread does not go on", has_turned, vector_rounds);
    if (vector_bad)
        fail("vector registers have changed");
    if (write(to_child, &byte, 1) != 1 || read(from_child, &byte, 1) != 1 || byte != 'y')
        fail("the child does not answer");
    siginfo_t info = { 0 };
    if (waitid(P_PID, ended_child, &info, WEXITED | WNOWAIT | WNOHANG) || info.si_status != 42)
        fail("the ended child is lost");
    if (checksum() != sum_at_start)
        fail("the memory has changed");
    if (complaint[0])
        printf("fail: %s\n", complaint);
    else
        printf("ok restarts %d\n", restarts);
}

static void serve(int in, int out)
{
    char byte;
    while (read(in, &byte, 1) == 1)
        (void)!write(out, "y", 1);
    _exit(0);
}

static void *clock_thread(void *argument)
{
    (void)argument; // takes the timers' signals, so that the other threads are never interrupted by them
    sigset_t mask = mask_of(SLEEPERS + 3);
    sigdelset(&mask, SIGALRM);
    sigdelset(&mask, SIGRTMIN + 2);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    started++;
    for (;;)
        pause();
    return NULL;
}

int main(int count, char **arguments)
{
    static char stack[65536], line[100];
    size_t megabytes = count > 1 ? strtoul(arguments[1], NULL, 10) : 64;
    int there[2], back[2];
    if (pipe2(there, O_CLOEXEC) || pipe2(back, O_CLOEXEC))
        return 1;
    to_child = there[1], from_child = back[0];
    if (!(child = fork())) {
        close(there[1]);
        serve(there[0], back[1]);
    }
    close(there[0]), close(back[1]);
    if (!(ended_child = fork()))
        _exit(42);
    siginfo_t ended;
    waitid(P_PID, ended_child, &ended, WEXITED | WNOWAIT);

    words = megabytes * (1 << 20) / sizeof *memory;
    memory = mmap(NULL, words * sizeof *memory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < words; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        memory[i] = state;
    }
    sum_at_start = checksum();

    sigset_t mask = mask_of(SLEEPERS + 2);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof stack }, NULL);
    struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
    sigaddset(&action.sa_mask, SIGUSR1);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    for (int kind = 0; kind < SLEEPERS; kind++) {
        if (pipe2(pipes[kind], O_CLOEXEC))
            return 1;
        pthread_create(&sleepers[kind], NULL, sleeper, (void *)(intptr_t)kind);
    }
    pthread_t ticker, dozer, vector;
    pthread_create(&ticker, NULL, clock_thread, NULL);
    pthread_create(&dozer, NULL, doze, NULL);
    pthread_create(&vector, NULL, spin, NULL);
    wait_for("a thread does not start", has_started, SLEEPERS + 3);
    struct itimerval often = { { 0, 10000 }, { 0, 10000 } };
    setitimer(ITIMER_REAL, &often, NULL);
    timer_t timer;
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2 };
    sigaction(SIGRTMIN + 2, &action, NULL);
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &(struct itimerspec){ { 0, 15000000 }, { 0, 15000000 } }, NULL);
    queue_signals();

    setlinebuf(stdout);
    puts("ready");
    for (;;) {
        ssize_t size = read(0, line, sizeof line - 1);
        if (size < 0 && errno == EINTR) {
            restarts++;
            continue;
        }
        if (size <= 0)
            printf("fail: read: %zd, %s\n", size, strerror(errno));
        if (size <= 0 || line[0] == 'q')
            break;
        check(line[0] == 's');
    }
    kill(child, SIGKILL);
    return 0;
}
