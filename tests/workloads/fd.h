// SPDX-License-Identifier: Apache-2.0
/* What the file, socket and terminal workloads share: facts about a descriptor, remembered and compared. */
#ifndef FD_H
#define FD_H
#include "wl.h"
#include <linux/kcmp.h>
#include <sys/ioctl.h>

/* Do two descriptors (of two processes) mean one open file description? */
static WL_UNUSED bool fd_one_description(pid_t pid1, int fd1, pid_t pid2, int fd2)
{
	return MUST(syscall(SYS_kcmp, pid1, pid2, KCMP_FILE, fd1, fd2)) == 0;
}

static WL_UNUSED bool fd_same(int fd1, int fd2) { return fd_one_description(getpid(), fd1, getpid(), fd2); }

/* A descriptor's flags and its description's, inode and position: remember before, compare after. */
struct fd_facts {
	int fd, flags, cloexec;
	off_t position;
	struct stat stat;
};

static WL_UNUSED struct fd_facts fd_look(int fd)
{
	struct fd_facts facts = {.fd = fd};
	facts.flags = MUST(fcntl(fd, F_GETFL));
	facts.cloexec = MUST(fcntl(fd, F_GETFD));
	facts.position = lseek(fd, 0, SEEK_CUR);
	MUST(fstat(fd, &facts.stat));
	return facts;
}

/* Without inode numbers and times: those of pipes, sockets, memfds and ghosts are new after a restore. */
static WL_UNUSED void fd_check(const struct fd_facts *was, const char *what)
{
	struct fd_facts now = fd_look(was->fd);
	CHECK(now.flags == was->flags, "%s: flags are %#o, were %#o", what, (unsigned)now.flags, (unsigned)was->flags);
	CHECK(now.cloexec == was->cloexec, "%s: descriptor flags are %d, were %d", what, now.cloexec, was->cloexec);
	CHECK(now.position == was->position, "%s: position is %ld, was %ld", what, (long)now.position, (long)was->position);
	CHECK(now.stat.st_mode == was->stat.st_mode, "%s: mode is %#o, was %#o", what, now.stat.st_mode, was->stat.st_mode);
	CHECK(now.stat.st_rdev == was->stat.st_rdev, "%s: device is %#lx, was %#lx", what, (long)now.stat.st_rdev,
	      (long)was->stat.st_rdev);
	CHECK(now.stat.st_uid == was->stat.st_uid && now.stat.st_gid == was->stat.st_gid, "%s: owner is %d:%d, was %d:%d", what,
	      now.stat.st_uid, now.stat.st_gid, was->stat.st_uid, was->stat.st_gid);
	if (S_ISREG(was->stat.st_mode))
		CHECK(now.stat.st_size == was->stat.st_size, "%s: size is %ld, was %ld", what, (long)now.stat.st_size,
		      (long)was->stat.st_size);
}

/* Also the very same inode, for files that were never away. */
static WL_UNUSED void fd_check_inode(const struct fd_facts *was, const char *what)
{
	struct fd_facts now = fd_look(was->fd);
	fd_check(was, what);
	CHECK(now.stat.st_dev == was->stat.st_dev && now.stat.st_ino == was->stat.st_ino, "%s: another inode", what);
	CHECK(now.stat.st_nlink == was->stat.st_nlink, "%s: %ld links, were %ld", what, (long)now.stat.st_nlink,
	      (long)was->stat.st_nlink);
}

static WL_UNUSED void fd_put(int fd, const void *data, size_t length)
{
	ssize_t n = MUST(write(fd, data, length));
	CHECK((size_t)n == length, "wrote %zd of %zu", n, length);
}

/* read() gives exactly `data`, no more and no less; within five seconds, so that a failure is no hang. */
static WL_UNUSED void fd_expect(int fd, const void *data, size_t length, const char *what)
{
	char *buffer = malloc(length + 65536);
	CHECK(poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 5000) == 1, "%s: nothing to read", what);
	ssize_t n = read(fd, buffer, length + 65536);
	CHECK(n >= 0, "%s: read: %s", what, strerror(errno));
	CHECK((size_t)n == length, "%s: read %zd bytes, expected %zu", what, n, length);
	CHECK(!memcmp(buffer, data, length), "%s: other bytes than before", what);
	free(buffer);
}

static WL_UNUSED void fd_expect_text(int fd, const char *text, const char *what) { fd_expect(fd, text, strlen(text), what); }

/* read() fails with `error`. */
static WL_UNUSED void fd_expect_error(int fd, int error, const char *what)
{
	char bytes[8]; /* an eventfd or timerfd gives no less */
	ssize_t n = read(fd, bytes, sizeof bytes);
	CHECK(n == -1 && errno == error, "%s: read gave %zd (%s), expected %s", what, n, n < 0 ? strerror(errno) : "no error",
	      strerror(error));
}

static WL_UNUSED void fd_expect_end(int fd, const char *what)
{
	char byte;
	ssize_t n = read(fd, &byte, 1);
	CHECK(n == 0, "%s: read gave %zd (%s), expected end of file", what, n, n < 0 ? strerror(errno) : "a byte");
}

/* Poll events that are there now. */
static WL_UNUSED int fd_poll(int fd)
{
	struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP};
	MUST(poll(&one, 1, 0));
	return one.revents;
}

static WL_UNUSED int fd_make(const char *path, const char *text)
{
	int fd = MUST(open(path, O_RDWR | O_CREAT | O_EXCL, 0640));
	fd_put(fd, text, strlen(text));
	return fd;
}

#endif
