// SPDX-License-Identifier: Apache-2.0
/* Queued messages that carry credentials (SCM_CREDENTIALS), the sender's own and others that root may claim. */
/* wl: */
#include "sk.h"

static void put(int fd, const char *text, struct ucred ids)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof ids)];
	} control;
	struct iovec piece = {(void *)text, strlen(text)};
	struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	memset(&control, 0, sizeof control);
	control.header = (struct cmsghdr){CMSG_LEN(sizeof ids), SOL_SOCKET, SCM_CREDENTIALS};
	memcpy(CMSG_DATA(&control.header), &ids, sizeof ids);
	MUST(sendmsg(fd, &message, 0));
}

static void take(int fd, const char *text, struct ucred ids)
{
	char buffer[100];
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof ids) + 100];
	} control;
	struct ucred now = {0};
	struct iovec piece = {buffer, sizeof buffer};
	struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t n = MUST(recvmsg(fd, &message, MSG_DONTWAIT));
	CHECK(n == (ssize_t)strlen(text) && !memcmp(buffer, text, (size_t)n), "got %zd bytes, expected %s", n, text);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	CHECK(header && header->cmsg_type == SCM_CREDENTIALS, "no credentials with %s", text);
	memcpy(&now, CMSG_DATA(header), sizeof now);
	CHECK(now.pid == ids.pid && now.uid == ids.uid && now.gid == ids.gid, "%s: from %d, %d:%d; was %d, %d:%d", text, now.pid,
	      now.uid, now.gid, ids.pid, ids.uid, ids.gid);
}

int main(void)
{
	int pair[2];
	wl_begin();
	if (geteuid() != 0)
		wl_skip("needs root");
	struct ucred own = {getpid(), 0, 0}, claimed = {getpid(), 1234, 4321};
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	sk_set(pair[1], SOL_SOCKET, SO_PASSCRED, 1);
	put(pair[0], "claimed", claimed);
	put(pair[0], "own", own);
	fd_put(pair[0], "implicit", 8);
	wl_ready_wait();
	take(pair[1], "claimed", claimed);
	take(pair[1], "own", own);
	take(pair[1], "implicit", own);
	wl_pass();
}
