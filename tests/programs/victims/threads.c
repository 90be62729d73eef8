// SPDX-License-Identifier: Apache-2.0
/*
 * A thousand threads, each with a number of its own in thread-local storage, a name, and a signal mask, that wait in
 * turn in a mutex, a condition variable, a sleep, a pipe and a poll, and hand a token from one to the next: none may be
 * lost, swapped or left asleep.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define THREADS 999 /* and the main thread */

static __thread long mine;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int over;
static atomic_int bad;
static atomic_long rounds[THREADS];
static int pipes[100][2]; /* thread i of a hundred waits on pipe i and writes to pipe i + 1 */
static pid_t tids[THREADS];

static void complain(long thread, const char *what)
{
    dprintf(STDOUT_FILENO, "fail: thread %ld: %s\n", thread, what);
    atomic_store(&bad, 1);
}

static void check(long thread)
{
    char name[16], want[16];
    sigset_t set;
    if (mine != thread * 3 + 1)
        complain(thread, "its local storage changed");
    snprintf(want, sizeof want, "thread %ld", thread);
    if (pthread_getname_np(pthread_self(), name, sizeof name) || strcmp(name, want))
        complain(thread, "its name changed");
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    if (sigismember(&set, SIGRTMIN + (int)(thread % 20)) != 1 || sigismember(&set, SIGRTMIN + 20) != 0)
        complain(thread, "its signal mask changed");
    if (syscall(SYS_gettid) != tids[thread])
        complain(thread, "its number changed");
    atomic_fetch_add(&rounds[thread], 1);
}

static int is_over(void)
{
    pthread_mutex_lock(&lock);
    int now = over;
    pthread_mutex_unlock(&lock);
    return now;
}

static void *work(void *argument)
{
    long thread = (long)argument;
    char name[16];
    sigset_t set;
    mine = thread * 3 + 1;
    tids[thread] = (pid_t)syscall(SYS_gettid);
    snprintf(name, sizeof name, "thread %ld", thread);
    pthread_setname_np(pthread_self(), name);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + (int)(thread % 20));
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    while (!is_over()) {
        check(thread);
        if (thread < 100) { /* a ring of pipes with one token */
            char token;
            struct pollfd ready = {.fd = pipes[thread][0], .events = POLLIN};
            if (poll(&ready, 1, 200) == 1 && read(pipes[thread][0], &token, 1) == 1) {
                usleep(200);
                if (write(pipes[(thread + 1) % 100][1], &token, 1) != 1)
                    complain(thread, "could not pass the token on");
            }
        } else if (thread < 300) { /* a condition with a limit */
            struct timespec limit;
            clock_gettime(CLOCK_REALTIME, &limit);
            limit.tv_sec += 1;
            pthread_mutex_lock(&lock);
            if (!over)
                pthread_cond_timedwait(&changed, &lock, &limit);
            pthread_mutex_unlock(&lock);
        } else if (thread < 600) { /* sleeps of different lengths */
            struct timespec pause = {0, 50000000 + thread * 1000000};
            nanosleep(&pause, NULL);
        } else { /* a condition without a limit: nobody wakes them but the end */
            pthread_mutex_lock(&lock);
            while (!over)
                pthread_cond_wait(&changed, &lock);
            pthread_mutex_unlock(&lock);
        }
    }
    check(thread);
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    pthread_attr_t attributes;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int i = 0; i < 100; i++)
        if (pipe(pipes[i]))
            return 1;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    for (long i = 0; i < THREADS; i++)
        if ((errno = pthread_create(&threads[i], &attributes, work, (void *)i))) {
            perror("pthread_create");
            return 1;
        }
    if (write(pipes[0][1], "t", 1) != 1)
        return 1;
    for (int i = 0; i < THREADS; i++)
        while (!atomic_load(&rounds[i]))
            usleep(1000);
    dprintf(STDOUT_FILENO, "ready\n");
    int number;
    for (long asked = 0; sigwait(&set, &number) == 0 && number == SIGUSR1; asked++) {
        long passed = 0; /* rounds of those that do not need the end */
        for (int i = 0; i < 600; i++)
            passed += atomic_load(&rounds[i]);
        dprintf(STDOUT_FILENO, "rounds %ld: %ld\n", asked, passed);
    }
    pthread_mutex_lock(&lock);
    over = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    dprintf(STDOUT_FILENO, "%s\n", atomic_load(&bad) ? "fail" : "pass");
    return atomic_load(&bad);
}
