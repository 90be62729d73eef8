// SPDX-License-Identifier: Apache-2.0
/* Areas under mseal(2) (Linux 6.10): what is in them may change, as far as their protection lets it, they may not.
 * Between two areas that are alike but for the seal; read-only, closed, of a file; inherited by a child.
 * CRIU 4.2 does not know mseal. */
/* wl: */
#include "wl.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

enum { page = WL_PAGE, size = 4 * page };
static char *writable, *readable, *closed, *file;

static void refused(long result, const char *what) { CHECK(result == -1 && errno == EPERM, "%s of a sealed area gives %ld", what, result); }

static void sealed(char *area, const char *name)
{
	CHECK(munmap(area + page, page) == -1 && errno == EPERM, "the %s area is no longer sealed", name);
	refused(munmap(area - page, 2 * page), "munmap from its neighbour on");
	refused(mprotect(area, size, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect");
	refused((long)mremap(area, size, 2 * size, MREMAP_MAYMOVE), "mremap");
	refused((long)mmap(area, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), "mmap over");
}

static void check(uint64_t seed)
{
	sealed(writable, "writable");
	sealed(readable, "readable");
	sealed(closed, "closed");
	sealed(file, "file's");
	refused(madvise(readable, page, MADV_DONTNEED), "MADV_DONTNEED");
	wl_same(writable, size, seed, "the writable area");
	wl_same(readable, size, 2, "the readable area");
	wl_same(file, size, 4, "the file's area");
	wl_fill(writable, size, seed + 100);
	wl_same(writable, size, seed + 100, "the writable area, written again");
	wl_same(writable - size, size, 5, "the area before");
	wl_same(writable + size, size, 6, "the area after");
	MUST(mprotect(writable + size, size, PROT_READ)); /* these are free */
	MUST(munmap(writable - size, size));
}

static void child(void *unused)
{
	(void)unused;
	wl_fill(writable, size, 7); /* its own from now on */
	wl_child_ready_wait();
	check(7);
	_exit(0);
}

static char *area(int protection, uint64_t seed)
{
	/* Neighbours that are alike but for the seal, or the protection. */
	char *whole = MUST(mmap(NULL, 3 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(whole, size, 5);
	wl_fill(whole + size, size, seed);
	wl_fill(whole + 2 * size, size, 6);
	MUST(mprotect(whole + size, size, protection));
	return whole + size;
}

int main(void)
{
	static char content[size];
	wl_begin();
	writable = area(PROT_READ | PROT_WRITE, 1);
	readable = area(PROT_READ, 2);
	closed = area(PROT_NONE, 3);
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	wl_fill(content, size, 4);
	MUST(write(fd, content, size));
	file = MUST(mmap(area(PROT_READ, 4), size, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0));
	MUST(close(fd));
	if (syscall(SYS_mseal, writable, (long)size, 0L))
		wl_skip("no mseal (Linux 6.10): %s", strerror(errno));
	MUST(syscall(SYS_mseal, readable, (long)size, 0L));
	MUST(syscall(SYS_mseal, closed, (long)size, 0L));
	MUST(syscall(SYS_mseal, file, (long)size, 0L));
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	wl_end(pid);
	check(1);
	wl_pass();
}
