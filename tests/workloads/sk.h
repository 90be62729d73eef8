// SPDX-License-Identifier: Apache-2.0
/* What the socket workloads share. */
#ifndef SK_H
#define SK_H
#include "fd.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/socket.h>
#include <sys/un.h>

/* A UNIX address; '@' as the first letter means abstract.  *length is what bind() and connect() want. */
static WL_UNUSED struct sockaddr_un sk_name(const char *name, socklen_t *length)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t n = strlen(name);
	memcpy(address.sun_path, name, n);
	*length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + (*name != '@'));
	if (*name == '@')
		address.sun_path[0] = 0;
	return address;
}

static WL_UNUSED void sk_bind(int fd, const char *name)
{
	socklen_t length;
	struct sockaddr_un address = sk_name(name, &length);
	MUST(bind(fd, (struct sockaddr *)&address, length));
}

static WL_UNUSED void sk_connect(int fd, const char *name)
{
	socklen_t length;
	struct sockaddr_un address = sk_name(name, &length);
	CHECK(connect(fd, (struct sockaddr *)&address, length) == 0, "connect to %s: %s", name, strerror(errno));
}

static WL_UNUSED void sk_same_name(const struct sockaddr_un *address, socklen_t length, const char *name, const char *what)
{
	socklen_t expected = sizeof(sa_family_t);
	struct sockaddr_un was = {.sun_family = AF_UNIX};
	if (name)
		was = sk_name(name, &expected);
	EXPECT(length == expected && !memcmp(address, &was, length), "%s: name of length %d, '%.*s', expected %s", what, (int)length,
	      length > 2 ? (int)length - 2 : 0, address->sun_path + (length > 3 && !address->sun_path[0]), name ? name : "none");
}

/* getsockname() and getpeername(); NULL: unnamed, "-": not connected. */
static WL_UNUSED void sk_names(int fd, const char *own, const char *peer, const char *what)
{
	struct sockaddr_un address = {0};
	socklen_t length = sizeof address;
	MUST(getsockname(fd, (struct sockaddr *)&address, &length));
	sk_same_name(&address, length, own, what);
	length = sizeof address;
	int got = getpeername(fd, (struct sockaddr *)&address, &length);
	if (peer && !strcmp(peer, "-"))
		EXPECT(got == -1 && errno == ENOTCONN, "%s: is connected", what);
	else {
		EXPECT(got == 0, "%s: getpeername: %s", what, strerror(errno));
		if (got == 0)
			sk_same_name(&address, length, peer, what);
	}
}

static WL_UNUSED int sk_get(int fd, int level, int option)
{
	int value = 0;
	socklen_t length = sizeof value;
	CHECK(getsockopt(fd, level, option, &value, &length) == 0, "getsockopt(%d, %d): %s", level, option, strerror(errno));
	return value;
}

static WL_UNUSED void sk_set(int fd, int level, int option, int value)
{
	CHECK(setsockopt(fd, level, option, &value, sizeof value) == 0, "setsockopt(%d, %d, %d): %s", level, option, value,
	      strerror(errno));
}

/* Options of int value: set before, remembered as the kernel tells them, compared after. */
struct sk_option {
	int level, option, value;
	const char *name;
	int before;
};
#define SK_OPTION(level, option, value) {level, option, value, #option, 0}
/* htonl() in a constant. */
#define SK_NETWORK(value) (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? (value) : (int)__builtin_bswap32(value))

static WL_UNUSED void sk_set_options(int fd, struct sk_option *options, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		CHECK(setsockopt(fd, options[i].level, options[i].option, &options[i].value, sizeof(int)) == 0, "set %s: %s",
		      options[i].name, strerror(errno));
	}
	for (size_t i = 0; i < count; i++)
		options[i].before = sk_get(fd, options[i].level, options[i].option);
}

static WL_UNUSED void sk_check_options(int fd, const struct sk_option *options, size_t count, const char *what)
{
	for (size_t i = 0; i < count; i++) {
		int now = sk_get(fd, options[i].level, options[i].option);
		EXPECT(now == options[i].before, "%s: %s is %d, was %d", what, options[i].name, now, options[i].before);
	}
}

/* An IP address: "127.0.0.1" or "::1". */
static WL_UNUSED struct sockaddr_storage sk_ip(const char *host, int port, socklen_t *length)
{
	struct sockaddr_storage storage = {0};
	struct sockaddr_in *four = (struct sockaddr_in *)&storage;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&storage;
	if (strchr(host, ':')) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons((uint16_t)port);
		CHECK(inet_pton(AF_INET6, host, &six->sin6_addr) == 1, "bad address %s", host);
		*length = sizeof *six;
	} else {
		four->sin_family = AF_INET;
		four->sin_port = htons((uint16_t)port);
		CHECK(inet_pton(AF_INET, host, &four->sin_addr) == 1, "bad address %s", host);
		*length = sizeof *four;
	}
	return storage;
}

static WL_UNUSED int sk_port(int fd)
{
	struct sockaddr_storage storage;
	socklen_t length = sizeof storage;
	MUST(getsockname(fd, (struct sockaddr *)&storage, &length));
	return ntohs(((struct sockaddr_in *)&storage)->sin_port); /* at the same place in both families */
}

/* Bind to a free port; returns it. */
static WL_UNUSED int sk_bind_ip(int fd, const char *host, int port)
{
	socklen_t length;
	struct sockaddr_storage address = sk_ip(host, port, &length);
	CHECK(bind(fd, (struct sockaddr *)&address, length) == 0, "bind to %s %d: %s", host, port, strerror(errno));
	return sk_port(fd);
}

static WL_UNUSED void sk_connect_ip(int fd, const char *host, int port)
{
	socklen_t length;
	struct sockaddr_storage address = sk_ip(host, port, &length);
	CHECK(connect(fd, (struct sockaddr *)&address, length) == 0, "connect to %s %d: %s", host, port, strerror(errno));
}

/* The socket's own (or its peer's) address is this one. */
static WL_UNUSED void sk_same_ip(int fd, bool peer, const char *host, int port, const char *what)
{
	char text[INET6_ADDRSTRLEN] = "";
	struct sockaddr_storage storage = {0};
	socklen_t length = sizeof storage;
	int got = (peer ? getpeername : getsockname)(fd, (struct sockaddr *)&storage, &length);
	CHECK(got == 0, "%s: no %s address: %s", what, peer ? "peer's" : "own", strerror(errno));
	const struct sockaddr_in *four = (struct sockaddr_in *)&storage;
	const struct sockaddr_in6 *six = (struct sockaddr_in6 *)&storage;
	inet_ntop(storage.ss_family, storage.ss_family == AF_INET ? (const void *)&four->sin_addr : &six->sin6_addr, text, sizeof text);
	CHECK(!strcmp(text, host) && ntohs(four->sin_port) == port, "%s: address is %s %d, was %s %d", what, text, ntohs(four->sin_port),
	      host, port);
}

#endif
