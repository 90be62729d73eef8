// SPDX-License-Identifier: Apache-2.0
/* Options of UNIX sockets: credentials, buffer sizes, timeouts, peek offset, priority, mark. */
/* wl: */
#include "sk.h"

static struct sk_option options[] = {
	SK_OPTION(SOL_SOCKET, SO_PASSCRED, 1), SK_OPTION(SOL_SOCKET, SO_SNDBUF, 50000), SK_OPTION(SOL_SOCKET, SO_RCVBUF, 60000),
	SK_OPTION(SOL_SOCKET, SO_PRIORITY, 5), SK_OPTION(SOL_SOCKET, SO_MARK, 7),
	SK_OPTION(SOL_SOCKET, SO_PASSSEC, 1),
};
enum { count = sizeof options / sizeof *options };

int main(void)
{
	int pair[2], usual[2];
	struct timeval receive = {7, 500000}, send = {3, 0}, now;
	socklen_t length = sizeof now;
	wl_begin();
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, usual));
	int usual_send = sk_get(usual[0], SOL_SOCKET, SO_SNDBUF), usual_receive = sk_get(usual[0], SOL_SOCKET, SO_RCVBUF);
	sk_set_options(pair[0], options, count);
	MUST(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive));
	MUST(setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &send, sizeof send));
	MUST(getsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &receive, &length)); /* rounded to clock ticks */
	wl_ready_wait();
	sk_check_options(pair[0], options, count, "pair");
	MUST(getsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &now, &length));
	CHECK(!memcmp(&now, &receive, sizeof now), "receive timeout is %ld.%06ld", (long)now.tv_sec, (long)now.tv_usec);
	MUST(getsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &now, &length));
	CHECK(!memcmp(&now, &send, sizeof now), "send timeout is %ld.%06ld", (long)now.tv_sec, (long)now.tv_usec);
	CHECK(sk_get(pair[1], SOL_SOCKET, SO_PASSCRED) == 0, "the other end passes credentials too");
	CHECK(sk_get(usual[0], SOL_SOCKET, SO_SNDBUF) == usual_send, "send buffer %d, was %d", sk_get(usual[0], SOL_SOCKET, SO_SNDBUF),
	      usual_send);
	CHECK(sk_get(usual[0], SOL_SOCKET, SO_RCVBUF) == usual_receive, "receive buffer %d, was %d",
	      sk_get(usual[0], SOL_SOCKET, SO_RCVBUF), usual_receive);
	fd_put(pair[1], "x", 1);
	char byte, control[100];
	struct iovec piece = {&byte, 1};
	struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	CHECK(recvmsg(pair[0], &message, 0) == 1, "recvmsg: %s", strerror(errno));
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	CHECK(header && header->cmsg_type == SCM_CREDENTIALS, "no credentials came");
	CHECK(((struct ucred *)CMSG_DATA(header))->pid == getpid(), "credentials of process %d",
	      ((struct ucred *)CMSG_DATA(header))->pid);
	wl_pass();
}
