// SPDX-License-Identifier: Apache-2.0
/* A working directory that has been deleted, in one process of two. */
/* wl: */
#include "wl.h"

static void child(void *unused)
{
	char now[PATH_MAX];
	(void)unused;
	MUST(mkdir("doomed", 0750));
	MUST(chdir("doomed"));
	MUST(rmdir("../doomed"));
	wl_child_ready_wait();
	struct stat facts;
	CHECK(getcwd(now, sizeof now) == NULL && errno == ENOENT, "cwd is %s", now);
	MUST(stat(".", &facts));
	CHECK(S_ISDIR(facts.st_mode) && (facts.st_mode & 0777) == 0750, "mode is 0%o", facts.st_mode);
	CHECK(open("file", O_CREAT | O_RDWR, 0600) == -1 && errno == ENOENT, "a file can be made in a deleted directory");
	_exit(0);
}

int main(void)
{
	struct stat facts;
	wl_begin();
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	CHECK(stat("doomed", &facts) == -1 && errno == ENOENT, "the deleted directory is there again");
	wl_end(pid);
	wl_pass();
}
