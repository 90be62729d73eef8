// SPDX-License-Identifier: Apache-2.0
//
// Programs that change while they are being stopped.  Says "ready"; a byte on its standard input sets it off.
//
//     adopts       a subreaper whose child, set off, makes a grandchild and ends
//     execs        a process of five threads, of which the last one, set off, becomes the same program once more
//     execs often  the same, but it sets itself off
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static char **arguments;

static void *sleeping(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static void set_off(void)
{
    char byte;
    if (read(0, &byte, 1) != 1)
        exit(1);
}

static void *changing(void *unused)
{
    if (arguments[2])
        usleep(1000);
    else
        set_off();
    execv("/proc/self/exe", arguments);
    return unused;
}

int main(int argc, char **argv)
{
    int adopts = argc > 1 && !strcmp(argv[1], "adopts");
    pthread_t thread;

    arguments = argv;
    setvbuf(stdout, NULL, _IONBF, 0);
    if (adopts && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0 && fork() == 0) {
        printf("ready\n");
        set_off();
        if (fork() != 0)
            _exit(0);
        sleeping(NULL);
    }
    for (int i = 0; !adopts && i < 3; i++)
        if (pthread_create(&thread, NULL, sleeping, NULL))
            return 1;
    if (!adopts && pthread_create(&thread, NULL, changing, NULL))
        return 1;
    if (!adopts && !argv[2])
        printf("ready\n");
    sleeping(NULL);
}
