// SPDX-License-Identifier: Apache-2.0
/* A thread that has a descriptor table of its own (unshare(CLONE_FILES)). */
/* wl: */
#include "fd.h"

static int file, ready[2], check[2];

static void *apart(void *argument)
{
	MUST(unshare(CLONE_FILES));
	close(file);
	MUST(open("mine", O_RDWR | O_CREAT, 0600));
	fd_put(file, "thread", 6);
	fd_put(ready[1], "r", 1);
	char byte;
	MUST(read(check[0], &byte, 1));
	struct fd_facts now = fd_look(file);
	struct stat mine;
	MUST(stat("mine", &mine));
	CHECK(now.position == 6 && now.stat.st_ino == mine.st_ino, "thread: its file is another (position %ld)", (long)now.position);
	return argument;
}

int main(void)
{
	pthread_t thread;
	char byte;
	wl_begin();
	MUST(pipe(ready));
	MUST(pipe(check));
	file = fd_make("file", "main");
	struct fd_facts was = fd_look(file);
	MUST0(pthread_create(&thread, NULL, apart, NULL));
	MUST(read(ready[0], &byte, 1));
	wl_ready_wait();
	fd_check_inode(&was, "main thread's file");
	fd_put(check[1], "x", 1);
	MUST0(pthread_join(thread, NULL));
	wl_pass();
}
