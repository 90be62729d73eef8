// SPDX-License-Identifier: Apache-2.0
/* Pipes: content, flags, a second description of one end, both ends in one task. */
/* wl: */
#include "fd.h"

int main(void)
{
	int plain[2], quiet[2], empty[2];
	char path[40];
	wl_begin();
	MUST(pipe(plain));
	MUST(pipe2(quiet, O_NONBLOCK | O_CLOEXEC));
	MUST(pipe(empty));
	MUST(fcntl(empty[0], F_SETFL, O_NONBLOCK));
	snprintf(path, sizeof path, "/proc/self/fd/%d", plain[0]);
	int reopened = MUST(open(path, O_RDONLY | O_NONBLOCK)); /* another description of the same pipe */
	snprintf(path, sizeof path, "/proc/self/fd/%d", quiet[0]);
	int both = MUST(open(path, O_RDWR | O_NONBLOCK));
	fd_put(plain[1], "first ", 6);
	fd_put(plain[1], "second", 6);
	static char pages[20000];
	wl_fill(pages, sizeof pages, 3);
	fd_put(quiet[1], pages, sizeof pages);
	fd_put(quiet[1], "tail", 4);
	char eaten[5];
	MUST(read(quiet[0], eaten, 5)); /* the first buffer is partly consumed */
	int fds[] = {plain[0], plain[1], quiet[0], quiet[1], empty[0], empty[1], reopened, both};
	struct fd_facts was[8];
	for (int i = 0; i < 8; i++)
		was[i] = fd_look(fds[i]);
	wl_ready_wait();
	for (int i = 0; i < 8; i++)
		fd_check(&was[i], (const char *[]){"0", "1", "quiet 0", "quiet 1", "empty 0", "empty 1", "reopened", "both"}[i]);
	int queued;
	MUST(ioctl(plain[0], FIONREAD, &queued));
	CHECK(queued == 12, "%d bytes in the pipe", queued);
	MUST(ioctl(quiet[0], FIONREAD, &queued));
	CHECK(queued == 19999, "%d bytes in the pipe", queued);
	CHECK(!fd_same(plain[0], reopened), "two descriptions are one");
	fd_expect_text(reopened, "first second", "reopened end");
	fd_expect_error(reopened, EAGAIN, "read twice");
	fd_expect_error(empty[0], EAGAIN, "empty pipe");
	memcpy(pages + sizeof pages - 4, "tail", 4);
	static char data[20004];
	wl_fill(data, 20000, 3);
	memcpy(data + 20000, "tail", 4);
	fd_expect(quiet[0], data + 5, 19999, "quiet");
	fd_put(both, "b", 1);
	fd_expect_text(quiet[0], "b", "written through the O_RDWR description");
	close(plain[1]);
	fd_expect_end(plain[0], "writer closed");
	wl_pass();
}
