// SPDX-License-Identifier: Apache-2.0
/* Deleted files whose name is taken: by another file, by a directory, by another deleted file of the same name. */
/* wl: */
#include "fd.h"

int main(void)
{
	wl_begin();
	int file1 = fd_make("name", "first");
	MUST(unlink("name"));
	int file2 = fd_make("name", "second");
	MUST(unlink("name"));
	int file3 = fd_make("name", "third");
	int other = fd_make("taken", "file");
	MUST(unlink("taken"));
	MUST(mkdir("taken", 0700));
	int directory = MUST(open("taken", O_RDONLY));
	struct fd_facts was[] = {fd_look(file1), fd_look(file2), fd_look(file3), fd_look(other), fd_look(directory)};
	wl_ready_wait();
	for (int i = 0; i < 5; i++) {
		char what[20];
		snprintf(what, sizeof what, "file %d", i);
		i == 2 || i == 4 ? fd_check_inode(&was[i], what) : fd_check(&was[i], what);
		struct stat now;
		MUST(fstat(was[i].fd, &now));
		CHECK((now.st_nlink == 0) == (was[i].stat.st_nlink == 0), "%s has %ld links", what, (long)now.st_nlink);
	}
	MUST(lseek(file1, 0, SEEK_SET));
	MUST(lseek(file2, 0, SEEK_SET));
	MUST(lseek(file3, 0, SEEK_SET));
	MUST(lseek(other, 0, SEEK_SET));
	fd_expect_text(file1, "first", "first file");
	fd_expect_text(file2, "second", "second file");
	fd_expect_text(file3, "third", "third file");
	fd_expect_text(other, "file", "file under a directory's name");
	struct stat named;
	MUST(stat("name", &named));
	CHECK(named.st_ino == was[2].stat.st_ino, "the name leads to another file");
	wl_pass();
}
