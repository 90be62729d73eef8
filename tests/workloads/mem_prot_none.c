// SPDX-License-Identifier: Apache-2.0
/* PROT_NONE areas: with content (which comes back), without, inside a file mapping, in shared memory. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE, length = 20 * page };
	wl_begin();
	char *full = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *empty = MUST(mmap(NULL, 1L << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *common = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(fd, length));
	char *file = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	char *writeonly = MUST(mmap(NULL, length, PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(full, length, 1);
	wl_fill(common, length, 2);
	wl_fill(file + 3 * page, 4 * page, 3);
	wl_fill(writeonly, length, 4);
	MUST(mprotect(full + 2 * page, 10 * page, PROT_NONE));
	MUST(mprotect(common, length, PROT_NONE));
	MUST(mprotect(file, 10 * page, PROT_NONE));
	MUST(mprotect(writeonly, 2 * page, PROT_NONE));
	wl_ready_wait();
	/* still closed: the kernel refuses to read from there */
	CHECK(write(fd, full + 2 * page, 1) == -1 && errno == EFAULT, "a PROT_NONE page can be read");
	CHECK(write(fd, empty, 1) == -1 && errno == EFAULT, "a PROT_NONE page can be read");
	CHECK(write(fd, common, 1) == -1 && errno == EFAULT, "a PROT_NONE page can be read");
	CHECK(write(fd, file, 1) == -1 && errno == EFAULT, "a PROT_NONE page can be read");
	MUST(mprotect(full, length, PROT_READ));
	MUST(mprotect(common, length, PROT_READ));
	MUST(mprotect(file, length, PROT_READ));
	MUST(mprotect(writeonly, length, PROT_READ));
	wl_same(full, length, 1, "private");
	wl_same(common, length, 2, "shared");
	wl_same(file + 3 * page, 4 * page, 3, "changed pages of a file");
	wl_zero(file, 3 * page, "the file");
	wl_same(writeonly, length, 4, "write-only");
	wl_pass();
}
