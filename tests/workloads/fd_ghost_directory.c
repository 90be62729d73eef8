// SPDX-License-Identifier: Apache-2.0
/* A deleted directory that is held open. */
/* wl: */
#include "fd.h"

int main(void)
{
	wl_begin();
	MUST(mkdir("gone", 0705));
	MUST(chown("gone", 1234, 4321));
	int fd = MUST(open("gone", O_RDONLY));
	int twin = MUST(open("gone", O_RDONLY | O_CLOEXEC));
	MUST(rmdir("gone"));
	struct fd_facts was = fd_look(fd), was2 = fd_look(twin);
	wl_ready_wait();
	fd_check(&was, "directory");
	fd_check(&was2, "second descriptor");
	struct stat now, now2;
	MUST(fstat(fd, &now));
	MUST(fstat(twin, &now2));
	CHECK(now.st_nlink == 0, "the directory has %ld links", (long)now.st_nlink);
	CHECK(now.st_ino == now2.st_ino, "two directories");
	CHECK(openat(fd, "new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "a file can be made in it");
	CHECK(access("gone", F_OK) == -1, "the name is back");
	wl_pass();
}
