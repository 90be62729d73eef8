// SPDX-License-Identifier: Apache-2.0
/* A shared mapping of a file opened read-only: it must not become writable (VM_MAYWRITE is absent). */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE };
	wl_begin();
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(fd, 4 * page));
	close(fd);
	fd = MUST(open("file", O_RDONLY));
	char *map = MUST(mmap(NULL, 4 * page, PROT_READ, MAP_SHARED, fd, 0));
	char *private = MUST(mmap(NULL, 4 * page, PROT_READ, MAP_PRIVATE, fd, 0));
	close(fd);
	wl_ready_wait();
	CHECK(mprotect(map, page, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "a read-only file can be written through its mapping");
	MUST(mprotect(private, page, PROT_READ | PROT_WRITE));
	wl_zero(map, 4 * page, "the file");
	wl_pass();
}
