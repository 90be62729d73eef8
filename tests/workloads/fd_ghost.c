// SPDX-License-Identifier: Apache-2.0
/* A deleted file, open several times and in two tasks: one inode with its content, holes, mode, owner and times.
 * Another one is of 5 GiB, nearly all of it a hole. */
/* wl: */
#define _FILE_OFFSET_BITS 64
#include "fd.h"

static int first, second, third;
static ino_t same_inode(int fd1, int fd2)
{
	struct stat one, two;
	MUST(fstat(fd1, &one));
	MUST(fstat(fd2, &two));
	return one.st_ino == two.st_ino && one.st_dev == two.st_dev;
}

static void child(void *argument)
{
	(void)argument;
	third = MUST(open("gone", O_RDONLY));
	MUST(lseek(third, 65536, SEEK_SET));
	wl_child_ready_wait();
	CHECK(same_inode(third, first), "child: another inode");
	CHECK(lseek(third, 0, SEEK_CUR) == 65536, "child: position is %ld", (long)lseek(third, 0, SEEK_CUR));
	char byte;
	CHECK(read(third, &byte, 1) == 1 && byte == 'N', "child: does not see what the parent wrote");
}

int main(void)
{
	static char page[4096], now[4096];
	wl_begin();
	first = MUST(open("gone", O_RDWR | O_CREAT | O_EXCL, 0600));
	wl_fill(page, sizeof page, 1);
	fd_put(first, page, sizeof page);
	MUST(pwrite(first, page, sizeof page, 1 << 20));
	MUST(fchown(first, 1234, 4321));
	MUST(fchmod(first, 0614));
	second = MUST(open("gone", O_WRONLY | O_APPEND | O_CLOEXEC));
	pid_t pid = wl_child(child, NULL);
	MUST(unlink("gone"));
	MUST(futimens(first, (struct timespec[]){{1000000000, 1000}, {1100000000, 2000}}));
	MUST(lseek(first, 100, SEEK_SET));
	int vast = MUST(open("vast", O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(ftruncate(vast, 5LL << 30));
	MUST(pwrite(vast, page, sizeof page, 3LL << 30));
	MUST(lseek(vast, (3LL << 30) + 5, SEEK_SET));
	MUST(unlink("vast"));
	struct fd_facts was = fd_look(first), was2 = fd_look(second), was3 = fd_look(vast);
	CHECK(was.stat.st_nlink == 0, "not deleted");
	wl_ready_wait();
	fd_check(&was, "first");
	fd_check(&was2, "second");
	fd_check(&was3, "vast");
	CHECK(pread(vast, now, sizeof now, 3LL << 30) == sizeof now && !memcmp(now, page, sizeof now), "vast: other bytes");
	struct stat stat;
	MUST(fstat(first, &stat));
	CHECK(stat.st_nlink == 0, "the file has %ld links", (long)stat.st_nlink);
	CHECK(access("gone", F_OK) == -1, "the name is back");
	CHECK(same_inode(first, second), "another inode");
	CHECK(stat.st_mtim.tv_sec == 1100000000, "changed at %ld", (long)stat.st_mtim.tv_sec);
	CHECK(stat.st_blocks <= was.stat.st_blocks + 64, "%ld blocks, were %ld", (long)stat.st_blocks, (long)was.stat.st_blocks);
	for (off_t at = 0; at <= 1 << 20; at += 1 << 20) {
		CHECK(pread(first, now, sizeof now, at) == sizeof now, "pread: %s", strerror(errno));
		CHECK(!memcmp(now, page, sizeof now), "other bytes at %ld", (long)at);
	}
	CHECK(pread(first, now, sizeof now, 1 << 19) == sizeof now, "pread: %s", strerror(errno));
	wl_zero(now, sizeof now, "hole");
	MUST(pwrite(first, "N", 1, 65536));
	wl_end(pid);
	fd_put(second, "tail", 4);
	MUST(fstat(first, &stat));
	CHECK(stat.st_size == (1 << 20) + 4096 + 4, "appended to size %ld", (long)stat.st_size);
	wl_pass();
}
