// SPDX-License-Identifier: Apache-2.0
/* Secret memory (memfd_secret, Linux 5.14) that is mapped, its descriptor closed. */
/* wl: refused=secret_memory */
#include "wl.h"

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

int main(void)
{
	enum { page = WL_PAGE };
	wl_begin();
	int fd = (int)syscall(SYS_memfd_secret, 0L);
	if (fd < 0)
		wl_skip("no secret memory: %s", strerror(errno));
	MUST(ftruncate(fd, page));
	char *at = MUST(mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
	wl_fill(at, page, 1);
	wl_ready_wait();
	wl_same(at, page, 1, "secret memory");
	wl_pass();
}
