// SPDX-License-Identifier: Apache-2.0
/* Descriptors in flight (SCM_RIGHTS): some are held by a task too, some are only in the queue. */
/* wl: */
#include "sk.h"

static void put(int fd, const char *text, const int *fds, size_t count)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int) * 8)];
	} control;
	struct iovec piece = {(void *)text, strlen(text)};
	struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control,
				 .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
	memset(&control, 0, sizeof control);
	control.header = (struct cmsghdr){CMSG_LEN(sizeof(int) * count), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * count);
	MUST(sendmsg(fd, &message, 0));
}

static void take(int fd, const char *text, int *fds, size_t count)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int) * 8)];
	} control;
	char buffer[100];
	struct iovec piece = {buffer, sizeof buffer};
	struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t n = MUST(recvmsg(fd, &message, MSG_DONTWAIT));
	CHECK(n == (ssize_t)strlen(text) && !memcmp(buffer, text, (size_t)n), "got %zd bytes, expected %s", n, text);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (!count)
		CHECK(!header, "descriptors with %s", text);
	else {
		CHECK(header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int) * count),
		      "not %zu descriptors with %s", count, text);
		memcpy(fds, CMSG_DATA(header), sizeof(int) * count);
	}
}

int main(void)
{
	int packets[2], stream[2], ends[2], got[2];
	wl_begin();
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	int held = fd_make("held", "held file"), only = fd_make("only", "only in flight");
	MUST(pipe(ends));
	MUST(lseek(only, 5, SEEK_SET));
	put(packets[0], "two files", (int[]){held, only}, 2);
	put(packets[0], "a pipe", &ends[0], 1);
	fd_put(packets[0], "none", 4);
	put(stream[0], "stream", &held, 1);
	close(only);
	close(ends[0]);
	fd_put(ends[1], "in the pipe", 11);
	wl_ready_wait();
	take(packets[1], "two files", got, 2);
	CHECK(fd_same(got[0], held), "another description than the one held");
	fd_expect_text(got[1], "in flight", "file that was only in flight");
	take(packets[1], "a pipe", got, 1);
	fd_expect_text(got[0], "in the pipe", "pipe that was only in flight");
	take(packets[1], "none", got, 0);
	take(stream[1], "stream", got, 1);
	CHECK(fd_same(got[0], held), "another description than the one held");
	wl_pass();
}
