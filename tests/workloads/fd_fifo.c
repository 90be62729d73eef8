// SPDX-License-Identifier: Apache-2.0
/* Named FIFOs with content: several descriptions, ends in two tasks, a size of its own. */
/* wl: */
#include "fd.h"

static int two_read, two_write;

static void child(void *argument)
{
	(void)argument;
	close(two_read);
	wl_child_ready_wait();
	fd_put(two_write, " and more", 9);
}

int main(void)
{
	wl_begin();
	MUST(mkfifo("one", 0640));
	MUST(mkfifo("two", 0604));
	MUST(mkfifo("half", 0600));
	MUST(mkfifo("empty", 0600));
	int one = MUST(open("one", O_RDWR));
	int reader = MUST(open("one", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	CHECK(fcntl(one, F_SETPIPE_SZ, 2 * WL_PAGE) == 2 * WL_PAGE, "F_SETPIPE_SZ: %s", strerror(errno));
	fd_put(one, "content of one", 14);
	two_read = MUST(open("two", O_RDONLY | O_NONBLOCK));
	two_write = MUST(open("two", O_WRONLY));
	MUST(fcntl(two_read, F_SETFL, 0));
	fd_put(two_write, "content of two", 14);
	int helper = MUST(open("half", O_RDWR));
	int half = MUST(open("half", O_WRONLY | O_NONBLOCK));
	close(helper);
	int empty = MUST(open("empty", O_RDONLY | O_NONBLOCK));
	pid_t pid = wl_child(child, NULL);
	close(two_write);
	int fds[] = {one, reader, two_read, half, empty};
	struct fd_facts was[5];
	for (int i = 0; i < 5; i++)
		was[i] = fd_look(fds[i]);
	wl_ready_wait();
	for (int i = 0; i < 5; i++)
		fd_check_inode(&was[i], (const char *[]){"one", "reader", "two", "half", "empty"}[i]);
	CHECK(fcntl(reader, F_GETPIPE_SZ) == 2 * WL_PAGE, "size is %d", fcntl(reader, F_GETPIPE_SZ));
	fd_expect_text(reader, "content of one", "one");
	fd_expect_error(reader, EAGAIN, "one");
	fd_expect_end(empty, "a FIFO without a writer");
	signal(SIGPIPE, SIG_IGN);
	CHECK(write(half, "x", 1) == -1 && errno == EPIPE, "a FIFO without a reader takes a byte");
	wl_end(pid);
	fd_expect_text(two_read, "content of two and more", "two");
	fd_expect_end(two_read, "two");
	wl_pass();
}
