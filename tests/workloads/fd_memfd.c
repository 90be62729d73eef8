// SPDX-License-Identifier: Apache-2.0
/* memfd files: name, content with a hole, position, mode, several descriptions, two tasks, a read-only description. */
/* wl: */
#include "fd.h"

static int first;

static void child(void *argument)
{
	(void)argument;
	wl_child_ready_wait();
	MUST(pwrite(first, "child", 5, 10));
}

int main(void)
{
	static char page[4096], now[4096];
	char path[40], link[80] = "";
	struct stat one, two;
	wl_begin();
	wl_fill(page, sizeof page, 9);
	first = MUST(memfd_create("my name (deleted)", 0));
	fd_put(first, page, sizeof page);
	MUST(pwrite(first, page, sizeof page, 1 << 20));
	MUST(ftruncate(first, (1 << 20) + 5000));
	MUST(fchmod(first, 0640));
	MUST(fchown(first, 12, 34));
	MUST(lseek(first, 77, SEEK_SET));
	snprintf(path, sizeof path, "/proc/self/fd/%d", first);
	int reader = MUST(open(path, O_RDONLY | O_CLOEXEC));
	int twin = MUST(dup(first));
	int empty = MUST(memfd_create("", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	pid_t pid = wl_child(child, NULL);
	struct fd_facts was = fd_look(first), was2 = fd_look(reader), was3 = fd_look(empty);
	wl_ready_wait();
	fd_check(&was, "memfd");
	fd_check(&was2, "reopened");
	fd_check(&was3, "empty");
	MUST(readlink(path, link, sizeof link - 1));
	CHECK(!strcmp(link, "/memfd:my name (deleted) (deleted)"), "its name is %s", link);
	MUST(fstat(first, &one));
	MUST(fstat(reader, &two));
	CHECK(one.st_ino == two.st_ino, "two files");
	CHECK(one.st_blocks <= was.stat.st_blocks, "%ld blocks, were %ld", (long)one.st_blocks, (long)was.stat.st_blocks);
	CHECK(fd_same(first, twin) && !fd_same(first, reader), "descriptions");
	CHECK(fcntl(first, F_GET_SEALS) == F_SEAL_SEAL, "seals %#x", fcntl(first, F_GET_SEALS));
	CHECK(fcntl(empty, F_GET_SEALS) == 0, "seals %#x", fcntl(empty, F_GET_SEALS));
	for (off_t at = 0; at <= 1 << 20; at += 1 << 20) {
		CHECK(pread(reader, now, 4096, at) == 4096, "pread: %s", strerror(errno));
		CHECK(!memcmp(now, page, 4096), "other bytes at %ld", (long)at);
	}
	CHECK(pread(reader, now, 4096, 8192) == 4096, "pread: %s", strerror(errno));
	wl_zero(now, 4096, "hole");
	CHECK(write(reader, "x", 1) == -1 && errno == EBADF, "read-only description can be written");
	wl_end(pid);
	CHECK(pread(reader, now, 5, 10) == 5 && !memcmp(now, "child", 5), "the child's writing is not seen");
	wl_pass();
}
