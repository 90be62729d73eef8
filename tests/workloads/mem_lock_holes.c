// SPDX-License-Identifier: Apache-2.0
/* Locked memory that cannot be populated everywhere: guard pages (6.15), what is beyond a file's end, no access.  mlockall
 * does not mind. */
/* wl: */
#include "wl.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

int main(void)
{
	enum { page = WL_PAGE, length = 16 * page };
	int flagged;
	wl_begin();
	char *guarded = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(fd, page + 100));
	char *beyond = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	char *shared = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	char *none = MUST(mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *readonly = MUST(mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(guarded, length, 1);
	bool guards = madvise(guarded + 4 * page, page, MADV_GUARD_INSTALL) == 0;
	wl_fill(beyond, page, 2);
	MUST(mlockall(MCL_CURRENT));
	wl_ready_wait();
	wl_same(guarded, 4 * page, 1, "before the guard page");
	int copy = MUST(open("copy", O_RDWR | O_CREAT | O_TRUNC, 0644));
	CHECK((pwrite(copy, guarded + 4 * page, page, 0) == -1) == guards, "the guard page");
	wl_same(beyond, page, 2, "private file");
	char *all[] = {guarded, beyond, shared, none, readonly};
	for (int i = 0; i < 5; i++) {
		wl_smaps_kb(all[i], all[i] + length, "Rss", "lo", &flagged);
		CHECK(flagged == 1, "area %d is no longer locked", i);
	}
	wl_pass();
}
