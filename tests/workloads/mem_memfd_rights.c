// SPDX-License-Identifier: Apache-2.0
/* Shared mappings of memfds that may never be written: through a read-only descriptor, and of sealed ones. */
/* wl: */
#include "wl.h"

int main(void)
{
	enum { page = WL_PAGE, length = 4 * page };
	char path[64];
	wl_begin();
	int fd = MUST(memfd_create("rights", MFD_ALLOW_SEALING)), sealed = MUST(memfd_create("sealed", MFD_ALLOW_SEALING));
	MUST(ftruncate(fd, length));
	MUST(ftruncate(sealed, length));
	char *writable = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	wl_fill(writable, length, 1);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int readonly = MUST(open(path, O_RDONLY));
	char *reading = MUST(mmap(NULL, length, PROT_READ, MAP_SHARED, readonly, 0));
	char *closed = MUST(mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0));
	MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE));
	char *never = mmap(NULL, length, PROT_READ, MAP_SHARED, sealed, 0); /* EPERM before 6.7 */
	close(readonly);
	wl_ready_wait();
	wl_same(reading, length, 1, "read-only");
	EXPECT(mprotect(reading, length, PROT_READ | PROT_WRITE) == -1, "a mapping that was read-only for ever can be written");
	EXPECT(mprotect(closed, length, PROT_READ | PROT_WRITE) == 0, "a mapping that was only closed cannot be opened");
	EXPECT(never == MAP_FAILED || mprotect(never, length, PROT_READ | PROT_WRITE) == -1, "one of a memfd without writers can be written");
	EXPECT(fcntl(sealed, F_GET_SEALS) == F_SEAL_WRITE, "seals are %x", fcntl(sealed, F_GET_SEALS));
	wl_pass();
}
