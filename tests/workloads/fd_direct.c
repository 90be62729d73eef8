// SPDX-License-Identifier: Apache-2.0
/* A file opened with O_DIRECT: the flag stays, aligned input works. */
/* wl: */
#include "fd.h"

int main(void)
{
	wl_begin();
	char *block = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(block, 8192, 1);
	int plain = MUST(open("file", O_RDWR | O_CREAT | O_EXCL, 0600));
	fd_put(plain, block, 8192);
	int fd = open("file", O_RDWR | O_DIRECT);
	if (fd == -1)
		wl_skip("no O_DIRECT on this file system");
	MUST(lseek(fd, 4096, SEEK_SET));
	struct fd_facts was = fd_look(fd);
	CHECK(was.flags & O_DIRECT, "no O_DIRECT at the start");
	memset(block, 0, 8192);
	wl_ready_wait();
	fd_check_inode(&was, "O_DIRECT file");
	CHECK(read(fd, block, 4096) == 4096, "read: %s", strerror(errno));
	for (size_t i = 0; i < 512; i++)
		CHECK(((uint64_t *)block)[i] == wl_word(1, 512 + i), "word %zu differs", i);
	wl_pass();
}
