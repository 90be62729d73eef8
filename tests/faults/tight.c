// SPDX-License-Identifier: Apache-2.0
//
// A program with two threads that has used up what its limits give it: "fds" (all descriptors are open), "fds but one",
// "space" (RLIMIT_AS leaves not a page), "locked" (mlockall(MCL_FUTURE), and RLIMIT_MEMLOCK is reached).
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

static volatile long beats;

static void *beat(void *argument)
{
    for (;;) {
        beats++;
        usleep(1000);
    }
    return argument;
}

static long pages(void)
{
    long size = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file && fscanf(file, "%ld", &size) != 1)
        size = 0;
    if (file)
        fclose(file);
    return size;
}

int main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "";
    static char out[256], line[64];
    setvbuf(stdout, out, _IOLBF, sizeof out);
    pthread_t thread;
    pthread_create(&thread, NULL, beat, NULL);
    if (!strncmp(what, "fds", 3)) {
        int last = 0, fd;
        while ((fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
            last = fd;
        if (what[3])
            close(last);
    } else if (!strcmp(what, "space")) {
        struct rlimit limit;
        limit.rlim_cur = limit.rlim_max = (rlim_t)pages() * 4096;
        setrlimit(RLIMIT_AS, &limit);
    } else if (!strcmp(what, "locked")) {
        struct rlimit limit;
        mlockall(MCL_CURRENT | MCL_FUTURE);
        limit.rlim_cur = limit.rlim_max = (rlim_t)pages() * 4096;
        setrlimit(RLIMIT_MEMLOCK, &limit);
    }
    puts("ready");
    while (read(0, line, sizeof line) > 0) {
        long before = beats;
        for (int i = 0; i < 5000 && beats == before; i++)
            usleep(1000);
        puts(beats > before ? "ok" : "fail: the other thread does not run");
    }
    return 0;
}
