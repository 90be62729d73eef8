// SPDX-License-Identifier: Apache-2.0
/* A memfd that is sealed against future writers: what was mapped before may be written, what came later may not. */
/* wl: */
#include "wl.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

int main(void)
{
	enum { page = WL_PAGE, length = 4 * page };
	wl_begin();
	int fd = MUST(memfd_create("future", MFD_ALLOW_SEALING));
	MUST(ftruncate(fd, length));
	char *before = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	char *closed = MUST(mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0));
	wl_fill(before, length, 1);
	MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	char *after = MUST(mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0));
	wl_ready_wait();
	wl_same(before, length, 1, "mapped before the seal");
	wl_same(after, length, 1, "mapped after the seal");
	before[0] = 1;
	EXPECT(after[0] == 1, "the two mappings are of different memory");
	EXPECT(mprotect(closed, length, PROT_READ | PROT_WRITE) == 0, "a mapping older than the seal cannot be opened");
	EXPECT(mprotect(after, length, PROT_READ | PROT_WRITE) == -1, "a mapping younger than the seal can be written");
	EXPECT(fcntl(fd, F_GET_SEALS) == F_SEAL_FUTURE_WRITE, "seals are %x", fcntl(fd, F_GET_SEALS));
	wl_pass();
}
