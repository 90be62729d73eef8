// SPDX-License-Identifier: Apache-2.0
/* A task whose working directory was deleted, and a file deleted with its directory. */
/* wl: */
#include "fd.h"

int main(void)
{
	char path[PATH_MAX] = "";
	wl_begin();
	MUST(mkdir("outer", 0700));
	MUST(mkdir("outer/inner", 0700));
	MUST(chdir("outer/inner"));
	int fd = fd_make("file", "content");
	struct fd_facts was = fd_look(fd);
	MUST(unlink("file"));
	MUST(rmdir("../inner"));
	MUST(rmdir(getenv("WL_DIR") ? (snprintf(path, sizeof path, "%s/outer", getenv("WL_DIR")), path) : "."));
	wl_ready_wait();
	fd_check(&was, "file");
	MUST(lseek(fd, 0, SEEK_SET));
	fd_expect_text(fd, "content", "file");
	CHECK(syscall(SYS_getcwd, path, sizeof path) == -1 && errno == ENOENT, "the working directory is %s", path);
	CHECK(access(path, F_OK) == -1 || strstr(path, "outer") == NULL, "%s is back", path);
	struct stat now;
	MUST(stat(".", &now));
	CHECK(now.st_nlink == 0, "working directory has %ld links", (long)now.st_nlink);
	wl_pass();
}
