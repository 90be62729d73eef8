// SPDX-License-Identifier: Apache-2.0
/* Areas that mremap has moved, grown, shrunk and split; contents went along. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE };
	wl_begin();
	char *target = MUST(mmap(NULL, 400 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *moved = MUST(mmap(NULL, 50 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(moved, 50 * page, 1);
	moved = MUST(mremap(moved, 50 * page, 80 * page, MREMAP_MAYMOVE | MREMAP_FIXED, target));
	char *split = MUST(mmap(NULL, 60 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(split, 60 * page, 2);
	/* the middle goes elsewhere, with its anonymous pages and their offsets */
	char *middle = MUST(mremap(split + 20 * page, 20 * page, 20 * page, MREMAP_MAYMOVE | MREMAP_FIXED, target + 100 * page));
	char *kept = MUST(mmap(NULL, 10 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(kept, 10 * page, 3);
	char *left = (char *)MUST(syscall(SYS_mremap, kept, 10L * page, 10L * page, MREMAP_MAYMOVE | 4L /* MREMAP_DONTUNMAP */, 0L));
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(fd, 40 * page));
	char *file = MUST(mmap(NULL, 40 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	wl_fill(file + 10 * page, page, 4);
	file = MUST(mremap(file + 10 * page, 20 * page, 25 * page, MREMAP_MAYMOVE | MREMAP_FIXED, target + 200 * page));
	wl_ready_wait();
	wl_same(moved, 50 * page, 1, "moved and grown");
	wl_zero(moved + 50 * page, 30 * page, "what it grew by");
	for (int i = 0; i < 20 * page / 8; i++)
		CHECK(((uint64_t *)middle)[i] == wl_word(2, (uint64_t)(20 * page / 8 + i)), "the moved middle changed");
	wl_same(split, 20 * page, 2, "the part before");
	wl_same(left, 10 * page, 3, "moved without unmapping");
	wl_zero(kept, 10 * page, "what it left");
	wl_same(file, page, 4, "a changed page of a moved file mapping");
	wl_zero(file + page, 24 * page, "a moved file mapping");
	moved = MUST(mremap(moved, 80 * page, 5 * page, 0));
	wl_same(moved, 5 * page, 1, "shrunk now");
	wl_pass();
}
