// SPDX-License-Identifier: Apache-2.0
/* A deleted file beyond the default limit of 1 MiB, dumped with a higher --ghost-limit. */
/* wl: dump=--ghost-limit=8M */
#include "fd.h"

int main(void)
{
	enum { size = 5 << 20 };
	wl_begin();
	char *data = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(data, size, 7);
	int fd = MUST(open("gone", O_RDWR | O_CREAT | O_EXCL, 0600));
	fd_put(fd, data, size);
	MUST(unlink("gone"));
	MUST(munmap(data, size));
	struct fd_facts was = fd_look(fd);
	wl_ready_wait();
	fd_check(&was, "big deleted file");
	data = MUST(mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0));
	wl_same(data, size, 7, "content");
	wl_pass();
}
