// SPDX-License-Identifier: Apache-2.0
/* A file really called "x (deleted)", beside a deleted file "x", and names that want escaping. */
/* wl: */
#include "fd.h"

int main(void)
{
	static const char *const names[] = {"x (deleted)", "new\nline \\012 tab\t", "\xff\xfe not utf-8", "ends in space "};
	struct fd_facts was[5];
	wl_begin();
	for (int i = 0; i < 4; i++)
		was[i] = fd_look(fd_make(names[i], names[i]));
	int gone = fd_make("x", "really deleted");
	MUST(unlink("x"));
	was[4] = fd_look(gone);
	wl_ready_wait();
	for (int i = 0; i < 4; i++) {
		fd_check_inode(&was[i], names[i]);
		MUST(lseek(was[i].fd, 0, SEEK_SET));
		fd_expect_text(was[i].fd, names[i], names[i]);
		MUST(access(names[i], F_OK));
	}
	fd_check(&was[4], "deleted x");
	MUST(lseek(gone, 0, SEEK_SET));
	fd_expect_text(gone, "really deleted", "deleted x");
	CHECK(access("x", F_OK) == -1, "x is back");
	wl_pass();
}
