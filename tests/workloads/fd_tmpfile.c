// SPDX-License-Identifier: Apache-2.0
/* A file made by O_TMPFILE: it has no name yet, but can be given one after the restore; opened a second time by /proc.
 * Not compared: its link in /proc is its inode number, which is a new one. */
/* wl: same=no */
#include "fd.h"

int main(void)
{
	char path[40];
	wl_begin();
	int fd = open(".", O_TMPFILE | O_RDWR, 0640);
	if (fd == -1)
		wl_skip("no O_TMPFILE on this file system");
	fd_put(fd, "content", 7);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int reader = MUST(open(path, O_RDONLY | O_CLOEXEC));
	MUST(lseek(reader, 3, SEEK_SET));
	struct fd_facts was = fd_look(fd), was2 = fd_look(reader);
	CHECK(was.flags & (O_TMPFILE & ~O_DIRECTORY), "no O_TMPFILE at the start");
	wl_ready_wait();
	fd_check(&was, "O_TMPFILE");
	fd_check(&was2, "opened again");
	fd_put(fd, "!", 1);
	fd_expect_text(reader, "tent!", "opened again");
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	MUST(linkat(AT_FDCWD, path, AT_FDCWD, "published", AT_SYMLINK_FOLLOW));
	struct stat one, two;
	MUST(stat("published", &one));
	MUST(fstat(reader, &two));
	CHECK(one.st_ino == two.st_ino && one.st_size == 8, "another file was published");
	MUST(unlink("published"));
	wl_pass();
}
