// SPDX-License-Identifier: Apache-2.0
/* Options of UDP sockets. */
/* wl: */
#include "sk.h"

static struct sk_option options[] = {
	SK_OPTION(SOL_SOCKET, SO_REUSEADDR, 1), SK_OPTION(SOL_SOCKET, SO_REUSEPORT, 1), SK_OPTION(SOL_SOCKET, SO_BROADCAST, 1),
	SK_OPTION(SOL_SOCKET, SO_SNDBUF, 70000), SK_OPTION(SOL_SOCKET, SO_RCVBUF, 80000), SK_OPTION(SOL_SOCKET, SO_PRIORITY, 3),
	SK_OPTION(SOL_SOCKET, SO_MARK, 2),	SK_OPTION(SOL_SOCKET, SO_DONTROUTE, 1), SK_OPTION(SOL_SOCKET, SO_NO_CHECK, 1),
	SK_OPTION(IPPROTO_IP, IP_PKTINFO, 1),	SK_OPTION(IPPROTO_IP, IP_TOS, 8),	SK_OPTION(IPPROTO_IP, IP_TTL, 44),
	SK_OPTION(IPPROTO_IP, IP_FREEBIND, 1),
};
enum { count = sizeof options / sizeof *options };

int main(void)
{
	char device[20] = "";
	socklen_t length = sizeof device;
	wl_begin();
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0)), bound_device = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	sk_set_options(fd, options, count);
	MUST(setsockopt(bound_device, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
	int port = sk_bind_ip(fd, "127.0.0.1", 0), device_port = sk_bind_ip(bound_device, "0.0.0.0", 0);
	int other = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	sk_set(other, SOL_SOCKET, SO_REUSEADDR, 1);
	sk_set(other, SOL_SOCKET, SO_REUSEPORT, 1);
	sk_bind_ip(other, "127.0.0.1", port);
	for (int i = 0; i < count; i++)
		options[i].before = sk_get(fd, options[i].level, options[i].option);
	wl_ready_wait();
	sk_check_options(fd, options, count, "UDP");
	sk_same_ip(fd, false, "127.0.0.1", port, "UDP");
	sk_same_ip(other, false, "127.0.0.1", port, "second on its port");
	sk_same_ip(bound_device, false, "0.0.0.0", device_port, "bound to a device");
	MUST(getsockopt(bound_device, SOL_SOCKET, SO_BINDTODEVICE, device, &length));
	CHECK(!strcmp(device, "lo"), "bound to device '%s'", device);
	wl_pass();
}
