// SPDX-License-Identifier: Apache-2.0
/* A changed root directory (chroot), in a child, with its working directory inside; another child has its cwd outside. */
/* wl: */
#include "wl.h"

static void child(void *outside)
{
	struct stat root, now, cwd, cwd_now;
	MUST(chroot("jail"));
	if (!outside)
		MUST(chdir("/below"));
	MUST(stat("/", &root));
	MUST(stat(".", &cwd));
	wl_child_ready_wait();
	MUST(stat("/", &now));
	MUST(stat(".", &cwd_now));
	CHECK(now.st_ino == root.st_ino && now.st_dev == root.st_dev, "another root directory");
	CHECK(cwd_now.st_ino == cwd.st_ino, "another working directory");
	CHECK(access("/proof", F_OK) == 0 && access("/etc/passwd", F_OK) == -1, "not in the jail");
	_exit(0);
}

int main(void)
{
	wl_begin();
	if (geteuid() != 0)
		wl_skip("needs CAP_SYS_CHROOT");
	MUST(mkdir("jail", 0755));
	MUST(mkdir("jail/below", 0755));
	MUST(close(MUST(open("jail/proof", O_CREAT | O_RDWR, 0644))));
	pid_t inside = wl_child(child, NULL), outside = wl_child(child, (void *)1);
	wl_ready_wait();
	CHECK(access("/etc/passwd", F_OK) == 0, "the root process is in the jail, too");
	wl_end(inside);
	wl_end(outside);
	wl_pass();
}
