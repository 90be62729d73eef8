// SPDX-License-Identifier: Apache-2.0
//
// Programs that are hard to catch: ``churn threads|forks|execs|vforks|spawns`` makes and ends what its name says as
// fast as it can, ``churn vfork`` waits for a child that does not execute anything.  Says "ready"; each line on standard
// input is answered by "ok" if work was done since the last, else "fail: why".
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static unsigned long done;
static const char *why;

static void *nothing(void *argument)
{
    return argument;
}

static void reap(pid_t child)
{
    int status;
    if (child < 0)
        why = strerror(errno);
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) {
            why = "the child cannot be waited for";
            return;
        }
    if (status)
        why = "a child ended badly";
}

static void threads(void)
{
    pthread_t all[8];
    for (int i = 0; i < 8; i++)
        if ((errno = pthread_create(&all[i], NULL, nothing, NULL)))
            why = strerror(errno);
    for (int i = 0; i < 8; i++)
        pthread_join(all[i], NULL);
}

static void forks(void)
{
    pid_t child = fork();
    if (!child) {
        pid_t grandchild = fork();
        if (!grandchild)
            _exit(0);
        int status;
        waitpid(grandchild, &status, 0);
        _exit(!!status);
    }
    reap(child);
}

static void vforks(void)
{
    pid_t child = vfork();
    if (!child) {
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    reap(child);
}

static void spawns(void)
{
    pid_t child;
    char *arguments[] = { "true", NULL };
    if ((errno = posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ)))
        why = strerror(errno);
    else
        reap(child);
}

static void *waits_for_vfork(void *argument)
{
    (void)argument;
    pid_t child = vfork();
    if (!child) {
        (void)!write(1, "ready\n", 6);
        for (;;)
            pause();
    }
    return NULL;
}

int main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "";
    void (*work)(void) = !strcmp(what, "threads") ? threads : !strcmp(what, "forks") ? forks
                       : !strcmp(what, "vforks") ? vforks : !strcmp(what, "spawns") ? spawns : NULL;
    char line[64];
    setlinebuf(stdout);
    if (!strcmp(what, "execs")) { // executes itself again and again; a pipe's content is what survives
        struct pollfd in = { .fd = 0, .events = POLLIN };
        int first = count < 3;
        if (first)
            puts("ready");
        else if (poll(&in, 1, 0) > 0) {
            if (read(0, line, sizeof line) <= 0)
                return 0;
            puts("ok");
        }
        execl("/proc/self/exe", "churn", "execs", "again", NULL);
        return 1;
    }
    if (!work) {
        pthread_t thread;
        pthread_create(&thread, NULL, waits_for_vfork, NULL);
        while (read(0, line, sizeof line) > 0)
            puts("ok");
        return 0;
    }
    puts("ready");
    for (;;) {
        struct pollfd in = { .fd = 0, .events = POLLIN };
        work();
        done++;
        if (poll(&in, 1, 0) > 0) {
            if (read(0, line, sizeof line) <= 0)
                return 0;
            if (why)
                printf("fail: %s\n", why);
            else
                puts("ok");
        }
    }
}
