// SPDX-License-Identifier: Apache-2.0
//
// A tree that a restore has much to make for: ``tree MEGABYTES PAGES``.  Four processes (one of them in a session
// without its leader), each with threads and checksummed memory; a zombie; a stopped child; in the working directory a
// UNIX socket that listens, a file that is deleted ("ghost"), one that is not ("kept"), a FIFO; shared memory without a
// name and, of PAGES pages, of System V (PAGES = 0: that of a memfd instead, which can be restored in a user namespace,
// too); a memfd, a timer, a pipe with data, and files of many other kinds.
//
// It prints "ready".  Each connection to the socket "door" is answered by "ok", or by "fail: why", when all four have
// looked at all that they own.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FAMILY = 4, THREADS = 2 };

static const char *why;
static uint64_t *memory, sum_at_start;
static size_t words;
static atomic_long beats[THREADS];
static atomic_int ticks;
static int ghost, kept, fifo, memory_file, full_pipe[2], zombie, stopped, segment;
static uint32_t *shared, *of_system_v;
static int ask[FAMILY][2], answer[FAMILY][2];

static void require(int truth, const char *what)
{
    if (!truth && !why)
        why = what;
}

static uint64_t checksum(void)
{
    uint64_t sum = 1469598103934665603u;
    for (size_t i = 0; i < words; i++)
        sum = (sum ^ memory[i]) * 1099511628211u;
    return sum;
}

static void *beat(void *argument)
{
    for (;;) {
        ++*(atomic_long *)argument;
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    }
    return NULL;
}

static void on_alarm(int number)
{
    (void)number;
    ticks++;
}

static void wait_for(atomic_long *what, const char *name)
{
    long before = *what;
    for (int i = 0; i < 20000 && *what == before; i++)
        nanosleep(&(struct timespec){ 0, 500000 }, NULL);
    require(*what != before, name);
}

static void settle(unsigned seed)
{
    memory = mmap(NULL, words * sizeof *memory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t state = 88172645463325252u + seed;
    for (size_t i = 0; i < words; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        memory[i] = state;
    }
    sum_at_start = checksum();
    for (int i = 0; i < THREADS; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, beat, (void *)&beats[i]);
    }
}

static void look(int number)
{
    char text[8] = "";
    struct stat facts;
    require(checksum() == sum_at_start, "the memory has changed");
    for (int i = 0; i < THREADS; i++)
        wait_for(&beats[i], "a thread does not go on");
    require(shared[number] == 4711u + number && of_system_v[number] == 815u + number, "shared memory has changed");
    require(pread(ghost, text, 5, 0) == 5 && !memcmp(text, "ghost", 5) && !fstat(ghost, &facts) && !facts.st_nlink,
            "the deleted file has changed");
    require(pread(kept, text, 4, 0) == 4 && !memcmp(text, "kept", 4), "the file has changed");
    require(pread(memory_file, text, 5, 0) == 5 && !memcmp(text, "memfd", 5), "the memfd has changed");
}

static void serve(int number)
{
    char byte;
    settle(number);
    while (read(ask[number][0], &byte, 1) == 1) {
        why = NULL;
        look(number);
        if (write(answer[number][1], why ? "n" : "y", 1) != 1)
            _exit(1);
    }
    _exit(0);
}

static void make_other_files(void)
{
    sigset_t set;
    int pair[2], event = eventfd(7, EFD_SEMAPHORE), epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct epoll_event wanted = { .events = EPOLLIN | EPOLLET, .data.u64 = 4711 };
    struct sockaddr_in here = { .sin_family = AF_INET };
    here.sin_addr.s_addr = htonl(0x7f000000 | (getpid() & 0xffffff)); // an address of its own: its port is nobody else's
    epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted);
    timerfd_settime(timer, 0, &(struct itimerspec){ { 5, 0 }, { 5, 0 } }, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), datagrams = socket(AF_INET6, SOCK_DGRAM, 0);
    if (signalfd(-1, &set, SFD_CLOEXEC) < 0 || datagrams < 0 || bind(listener, (struct sockaddr *)&here, sizeof here)
        || listen(listener, 3) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || send(pair[0], "queued", 6, 0) != 6
        || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) || send(pair[1], "packet", 6, 0) != 6
        || open("/dev/null", O_WRONLY | O_APPEND) < 0 || open(".", O_RDONLY | O_DIRECTORY) < 0)
        exit(1);
    char *private = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, kept, 0);
    private[4] = '!';
    mprotect(private, 4096, PROT_NONE);
    mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_GROWSDOWN, -1, 0);
}

static void make_things(int segment_pages)
{
    int plain = !segment_pages;
    ghost = open("ghost", O_RDWR | O_CREAT | O_EXCL, 0600);
    kept = open("kept", O_RDWR | O_CREAT | O_EXCL, 0600);
    memory_file = memfd_create("things", MFD_CLOEXEC);
    if (write(ghost, "ghost", 5) != 5 || write(kept, "kept", 4) != 4 || write(memory_file, "memfd", 5) != 5
        || ftruncate(memory_file, 8192) || unlink("ghost") || mkfifo("fifo", 0600) || (fifo = open("fifo", O_RDWR)) < 0 || write(fifo, "fifo", 4) != 4
        || pipe(full_pipe) || write(full_pipe[1], "full", 4) != 4)
        exit(1);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, plain ? MAP_SHARED : MAP_SHARED | MAP_ANONYMOUS,
                  plain ? memory_file : -1, plain ? 4096 : 0);
    make_other_files();
    if (plain) {
        of_system_v = shared + FAMILY;
    } else {
        segment = shmget(IPC_PRIVATE, 4096 * segment_pages, IPC_CREAT | 0600);
        of_system_v = shmat(segment, NULL, 0);
        shmctl(segment, IPC_RMID, NULL);
    }
    for (int i = 0; i < FAMILY; i++)
        shared[i] = 4711 + i, of_system_v[i] = 815 + i;
}

static void make_family(void)
{
    for (int i = 1; i < FAMILY; i++) {
        if (pipe(ask[i]) || pipe(answer[i]))
            exit(1);
    }
    if (!fork()) { // 1, the parent of 2
        if (!fork())
            serve(2);
        serve(1);
    }
    pid_t leader = fork(); // of a session, which ends; 3 stays in it, and comes to whoever adopts orphans: the root
    if (!leader) {
        setsid();
        if (!fork())
            serve(3);
        _exit(0);
    }
    waitpid(leader, NULL, 0);
    if (!(zombie = fork()))
        _exit(42);
    siginfo_t ended;
    waitid(P_PID, zombie, &ended, WEXITED | WNOWAIT);
    if (!(stopped = fork()))
        for (;;)
            pause();
    kill(stopped, SIGSTOP);
    waitid(P_PID, stopped, &ended, WSTOPPED);
}

static const char *inspect(void)
{
    char text[8] = "", byte = '?';
    siginfo_t info = { 0 };
    why = NULL;
    look(0);
    for (int i = 1; i < FAMILY; i++)
        require(write(ask[i][1], "x", 1) == 1 && read(answer[i][0], &byte, 1) == 1 && byte == 'y', "a child has lost");
    require(!waitid(P_PID, zombie, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_status == 42, "no zombie");
    require(read(fifo, text, 4) == 4 && !memcmp(text, "fifo", 4) && write(fifo, "fifo", 4) == 4, "the FIFO is empty");
    require(read(full_pipe[0], text, 4) == 4 && !memcmp(text, "full", 4) && write(full_pipe[1], "full", 4) == 4,
            "the pipe is empty");
    int before = ticks;
    for (int i = 0; i < 20000 && ticks == before; i++)
        nanosleep(&(struct timespec){ 0, 500000 }, NULL);
    require(ticks != before, "the timer does not tick");
    return why;
}

int main(int count, char **arguments)
{
    static char text[200];
    words = (count > 1 ? strtoul(arguments[1], NULL, 10) : 1) * (1 << 20) / sizeof *memory;
    make_things(count > 2 ? atoi(arguments[2]) : 0);
    if (prctl(PR_SET_CHILD_SUBREAPER, 1))
        return 1;
    make_family();
    settle(0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGALRM, on_alarm);
    timer_t timer;
    timer_create(CLOCK_MONOTONIC, &(struct sigevent){ .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM }, &timer);
    timer_settime(timer, 0, &(struct itimerspec){ { 0, 20000000 }, { 0, 20000000 } }, NULL);
    struct sockaddr_un name = { .sun_family = AF_UNIX, .sun_path = "door" };
    int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(door, (struct sockaddr *)&name, sizeof name) || listen(door, 5))
        return 1;
    if (write(1, "ready\n", 6) != 6)
        return 1;
    for (;;) {
        int guest = accept4(door, NULL, NULL, SOCK_CLOEXEC);
        if (guest < 0)
            continue;
        const char *complaint = inspect();
        int size = snprintf(text, sizeof text, complaint ? "fail: %s\n" : "ok\n", complaint);
        (void)!write(guest, text, size);
        close(guest);
    }
}
