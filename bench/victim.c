// SPDX-License-Identifier: Apache-2.0
/*
 * The benchmark's victim and the benchmark's stopwatch, in one file.
 *
 *   victim run KIND COUNT DIR    become a process of the given kind, print "ready", spin until killed
 *   victim time COMMAND...       run COMMAND, print "STATUS WALL_NS MAXRSS_KB" on stdout when it has ended
 *
 * The victim measures by itself how long it was frozen: its main thread reads CLOCK_MONOTONIC in a busy loop and keeps the
 * longest gap between two readings, in a page at a fixed address that the benchmark reads and clears through /proc/PID/mem.
 * So nothing has to be open or shared between the two for the sake of measuring.
 *
 * The stopwatch is not Python because ru_maxrss of a process that was forked and has called execve starts at the size that
 * its parent had: a small parent measures a small tool.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BOARD_ADDRESS 0x200000000000UL
#define PAGE 4096UL

struct board { /* bench/victims.py reads it: three 64-bit words */
    volatile uint64_t longest_gap_ns;
    volatile uint64_t beats;
    volatile uint64_t bad; /* the victim's own check of its memory: must stay 0 */
};

static void die(const char *what)
{
    fprintf(stderr, "victim: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static void *map(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}

/* Every page is different and none is zero, so that no tool can leave one out. */
static volatile uint64_t *memory;
static size_t memory_pages;

static void fill(size_t bytes)
{
    memory_pages = bytes / PAGE;
    memory = map(bytes);
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++)
        memory[i] = (i + 1) * 0x9E3779B97F4A7C15ULL;
}

static void *sleep_for_ever(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static void make_threads(long count)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    for (long i = 1; i < count; i++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, &attributes, sleep_for_ever, NULL)))
            die("pthread_create");
    }
}

/* The pipe to the benchmark and its stderr would be more things to dump. */
static void let_go_of_the_benchmark(void)
{
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
        die("/dev/null");
    if (null > 2)
        close(null);
}

static void make_processes(long count)
{
    for (long i = 1; i < count; i++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            munmap((void *)memory, memory_pages * PAGE); /* what a process costs, not what 200 copies of memory cost */
            let_go_of_the_benchmark();
            sleep_for_ever(NULL);
        }
    }
}

/* Neighbours differ in protection, or the kernel would merge them into one. */
static void make_areas(long count)
{
    char *start = map((size_t)count * PAGE);
    for (long i = 0; i < count; i++) {
        memset(start + i * PAGE, (int)(i % 255) + 1, PAGE);
        if (i % 2 && mprotect(start + i * PAGE, PAGE, PROT_READ))
            die("mprotect");
    }
}

static void make_files(long count, const char *directory)
{
    for (long i = 0; i < count; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/file-%ld", directory, i);
        int fd = open(path, O_RDWR | O_CREAT, 0600);
        if (fd < 0 || write(fd, path, strlen(path)) < 0)
            die(path);
    }
}

static __attribute__((noreturn)) void run(const char *kind, long count, const char *directory)
{
    struct board *board = mmap((void *)BOARD_ADDRESS, PAGE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (board == MAP_FAILED)
        die("mmap of the board");
    fill(strcmp(kind, "memory") == 0 ? (size_t)count << 20 : 4UL << 20);
    if (strcmp(kind, "threads") == 0)
        make_threads(count);
    else if (strcmp(kind, "processes") == 0)
        make_processes(count);
    else if (strcmp(kind, "areas") == 0)
        make_areas(count);
    else if (strcmp(kind, "files") == 0)
        make_files(count, directory);
    else if (strcmp(kind, "memory") != 0) {
        errno = EINVAL;
        die(kind);
    }
    if (write(STDOUT_FILENO, "ready\n", 6) != 6)
        die("write");
    let_go_of_the_benchmark();

    uint64_t last = now_ns();
    for (uint64_t i = 0;; i++) {
        uint64_t now = now_ns();
        if (now - last > board->longest_gap_ns)
            board->longest_gap_ns = now - last;
        last = now;
        board->beats++;
        size_t word = (i % memory_pages) * (PAGE / sizeof(uint64_t)) + i % 512;
        if (memory[word] != (word + 1) * 0x9E3779B97F4A7C15ULL)
            board->bad++;
    }
}

static int stopwatch(char **command)
{
    uint64_t start = now_ns();
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        /* the tool must not write into the pipe that carries the result, nor keep it open in what it restores */
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
            die("/dev/null");
        execvp(command[0], command);
        die(command[0]);
    }
    int status;
    struct rusage usage;
    while (wait4(pid, &status, 0, &usage) < 0)
        if (errno != EINTR)
            die("wait4");
    uint64_t wall = now_ns() - start;
    printf("%d %llu %ld\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
           (unsigned long long)wall, usage.ru_maxrss);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "run") == 0)
        run(argv[2], atol(argv[3]), argv[4]);
    if (argc >= 3 && strcmp(argv[1], "time") == 0)
        return stopwatch(argv + 2);
    fprintf(stderr, "usage: victim run KIND COUNT DIR | victim time COMMAND...\n");
    return 2;
}
