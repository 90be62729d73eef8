// SPDX-License-Identifier: Apache-2.0
/* Memory that was writable once stays accounted for, what never was does not begin to: guard pages, read-only files. */
/* wl: */
#include "wl.h"

enum { page = WL_PAGE, length = 16 * page };

static int accounted(const char *at)
{
	int flagged;
	wl_smaps_kb(at, at + page, "Rss", "ac", &flagged);
	return flagged;
}

int main(void)
{
	wl_begin();
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(fd, length));
	char *fibers = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fibers[15 * page] = 1; /* now it has an anon_vma */
	MUST(mprotect(fibers + 4 * page, page, PROT_NONE));
	MUST(mprotect(fibers + 8 * page, 2 * page, PROT_READ));
	char *thread = MUST(mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(mprotect(thread + page, length - page, PROT_READ | PROT_WRITE));
	wl_fill(thread + page, length - page, 1);
	char *file = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	MUST(mprotect(file, 4 * page, PROT_READ));
	MUST(mprotect(file + 4 * page, 4 * page, PROT_READ | PROT_EXEC));
	char *text = MUST(mmap(NULL, length, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0));
	const char *all[] = {fibers + 4 * page, fibers + 8 * page, thread, thread + page, file, file + 4 * page, text};
	enum { count = sizeof all / sizeof all[0] };
	int was[count];
	for (int i = 0; i < count; i++)
		was[i] = accounted(all[i]);
	CHECK(was[0] == 1 && was[2] == 0 && was[4] == 1 && was[6] == 0, "unexpected: %d %d %d %d", was[0], was[2], was[4], was[6]);
	wl_ready_wait();
	for (int i = 0; i < count; i++)
		CHECK(accounted(all[i]) == was[i], "area %d: VmFlags ac was %d, is %d", i, was[i], !was[i]);
	wl_same(thread + page, length - page, 1, "the thread's stack");
	CHECK(fibers[15 * page] == 1, "content is lost");
	wl_pass();
}
