// SPDX-License-Identifier: Apache-2.0
/* Sparse memory: 4 GiB reserved, few pages touched.  Pages never touched stay untouched, zero pages stay zero. */
/* wl: */
#include "wl.h"

static size_t page; /* the kernel's: it decides what one entry of pagemap stands for */
static const size_t size = (size_t)(4ULL << 30);

/* How many pages of an area are in memory, by its pagemap entries. */
static size_t present(const char *at, size_t pages)
{
	uint64_t entries[512];
	size_t found = 0;
	int fd = MUST(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
	for (size_t done = 0; done < pages; done += 512) {
		size_t n = pages - done < 512 ? pages - done : 512;
		CHECK(pread(fd, entries, n * 8, (off_t)(((uintptr_t)at / page + done) * 8)) == (ssize_t)(n * 8), "pagemap");
		for (size_t i = 0; i < n; i++)
			found += entries[i] >> 62 != 0;
	}
	close(fd);
	return found;
}

int main(void)
{
	wl_begin();
	if (sizeof(void *) < 8)
		wl_skip("4 GiB are more than a 32-bit process has");
	page = (size_t)sysconf(_SC_PAGESIZE);
	char *memory = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	MUST(madvise(memory, size, MADV_NOHUGEPAGE));
	/* a page every 100 MiB written; the one after it only read (the zero page); the one after that written with zeros */
	int touched = 0;
	for (size_t at = 0; at + 3 * page < size; at += 100UL << 20, touched++) {
		wl_fill(memory + at, page, at);
		CHECK(*(volatile char *)(memory + at + page) == 0, "not zero at first");
		memset(memory + at + 2 * page, 0, page);
	}
	size_t before = present(memory, size / page);
	CHECK(before == (size_t)touched * 3, "%zu pages present, %d touched", before, touched * 3);
	wl_ready_wait();
	size_t now = present(memory, size / page);
	CHECK(now <= before, "%zu pages are in memory, there were %zu: restoring touched what nobody had touched", now, before);
	for (size_t at = 0; at + 3 * page < size; at += 100UL << 20) {
		wl_same(memory + at, page, at, "a written page");
		wl_zero(memory + at + page, page, "a page that was read");
		wl_zero(memory + at + 2 * page, page, "a page of zeros");
		wl_zero(memory + at + 50 * page, page, "a page never touched");
	}
	wl_pass();
}
