// SPDX-License-Identifier: Apache-2.0
/* Pipes between tasks: a chain parent → child → grandchild → parent with content on each stretch, and their ends. */
/* wl: */
#include "fd.h"

static int a[2], b[2], c[2];

static void copy(int from, int to, const char *expected)
{
	char buffer[100];
	size_t length = 0;
	ssize_t n;
	while ((n = MUST(read(from, buffer + length, sizeof buffer - length))) > 0)
		length += (size_t)n;
	CHECK(length == strlen(expected) && !memcmp(buffer, expected, length), "got %.*s, expected %s", (int)length, buffer, expected);
	fd_put(to, buffer, length);
}

static void last(void *argument)
{
	(void)argument;
	close(a[0]), close(b[1]), close(c[0]), close(a[1]);
	fd_put(c[1], "C", 1);
	wl_child_ready_wait();
	copy(b[0], c[1], "BAafter");
}

static void middle(void *argument)
{
	(void)argument;
	close(a[1]), close(c[0]);
	fd_put(b[1], "B", 1);
	pid_t pid = MUST(fork());
	if (!pid) {
		last(NULL);
		_exit(0);
	}
	close(b[0]), close(c[1]);
	wl_wait();
	copy(a[0], b[1], "Aafter");
	close(b[1]);
	wl_end(pid);
}

int main(void)
{
	char buffer[100];
	wl_begin();
	MUST(pipe(a));
	MUST(pipe(b));
	MUST(pipe(c));
	pid_t pid = wl_child(middle, NULL);
	close(a[0]), close(b[0]), close(b[1]), close(c[1]);
	fd_put(a[1], "A", 1);
	wl_ready_wait();
	fd_put(a[1], "after", 5);
	close(a[1]); /* end of file travels along the chain */
	wl_end(pid);
	size_t length = 0;
	ssize_t n;
	while ((n = MUST(read(c[0], buffer + length, sizeof buffer - length))) > 0)
		length += (size_t)n;
	CHECK(length == 8 && !memcmp(buffer, "CBAafter", 8), "got %.*s", (int)length, buffer);
	wl_pass();
}
