// SPDX-License-Identifier: Apache-2.0
/* A prefork server: 20 children (2 in guests) that share 32 MiB (8) with their parent by fork.  Restoring them must not multiply it (PSS). */
/* wl: */
#include "wl.h"

enum { most = 20, page = WL_PAGE };
static int children;
static size_t size;
static char *memory;
static volatile long *pss; /* shared: what each child measures */

static void child(void *argument)
{
	intptr_t number = (intptr_t)argument;
	wl_fill(memory + number * 10 * page, 10 * page, 1000 + (uint64_t)number); /* its own 10 pages */
	wl_child_ready();
	wl_wait(); /* first SIGTERM: measure, while all live */
	pss[number] = wl_smaps_kb(memory, memory + size, "Pss", NULL, NULL);
	wl_wait(); /* second: check */
	wl_same(memory + number * 10 * page, 10 * page, 1000 + (uint64_t)number, "a child's own pages");
	wl_same(memory + size / 2, size / 2, 2, "pages shared by fork");
	_exit(0);
}

static long measure(pid_t *pids)
{
	long sum = wl_smaps_kb(memory, memory + size, "Pss", NULL, NULL);
	for (int i = 0; i < children; i++) {
		pss[i] = -1;
		MUST(kill(pids[i], SIGTERM));
	}
	for (int i = 0; i < children; i++) {
		while (pss[i] < 0)
			usleep(1000);
		sum += pss[i];
	}
	return sum;
}

int main(void)
{
	pid_t pids[most];
	wl_begin();
	children = wl_many(most);
	size = children == most ? 32UL << 20 : 8UL << 20;
	memory = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	pss = MUST(mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	madvise(memory, size, MADV_NOHUGEPAGE); /* not everywhere are there any */
	wl_fill(memory, size / 2, 1);
	wl_fill(memory + size / 2, size / 2, 2);
	for (int i = 0; i < children; i++)
		pids[i] = wl_child(child, (void *)(intptr_t)i);
	wl_ready_wait();
	long expected = (long)(size / 1024) + children * 10 * (page / 1024);
	long now = measure(pids);
	CHECK(now < expected + expected / 10, "parent and children together take %ld kB, it was %ld: no longer shared", now, expected);
	for (int i = 0; i < children; i++)
		wl_end(pids[i]);
	wl_same(memory, size / 2, 1, "the parent's pages");
	wl_pass();
}
