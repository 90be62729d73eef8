// SPDX-License-Identifier: Apache-2.0
/* A file whose name is gone while another hard link is left, in a place nobody told us: --link-remap. */
/* wl: opts=--link-remap */
#include "fd.h"

int main(void)
{
	wl_begin();
	MUST(mkdir("elsewhere", 0700));
	int fd = fd_make("name", "content");
	int twin = MUST(open("name", O_RDONLY | O_CLOEXEC));
	MUST(link("name", "elsewhere/other"));
	MUST(unlink("name"));
	MUST(lseek(fd, 3, SEEK_SET));
	struct fd_facts was = fd_look(fd), was2 = fd_look(twin);
	wl_ready_wait();
	fd_check_inode(&was, "file");
	fd_check_inode(&was2, "second description");
	fd_expect_text(fd, "tent", "file");
	struct stat other;
	MUST(stat("elsewhere/other", &other));
	CHECK(other.st_ino == was.stat.st_ino, "another inode than the link's");
	CHECK(access("name", F_OK) == -1, "the deleted name is back");
	wl_pass();
}
