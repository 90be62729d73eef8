// SPDX-License-Identifier: Apache-2.0
/* The flag O_DIRECTORY of an open directory is kept. */
/* wl: */
#include "fd.h"

int main(void)
{
	wl_begin();
	struct fd_facts was = fd_look(MUST(open(".", O_RDONLY | O_DIRECTORY)));
	struct fd_facts was2 = fd_look(MUST(open(".", O_PATH | O_DIRECTORY)));
	CHECK(was.flags & O_DIRECTORY, "no O_DIRECTORY at the start");
	wl_ready_wait();
	fd_check_inode(&was, "directory");
	fd_check_inode(&was2, "O_PATH directory");
	wl_pass();
}
