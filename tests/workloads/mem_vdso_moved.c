// SPDX-License-Identifier: Apache-2.0
/* A vDSO that a child has moved to where its parent has memory of its own, and a grandchild that has moved it once more,
 * a little, over its old place. */
/* wl: */
#include "wl.h"

#include <sys/auxv.h>

#define MAX_AREAS 8
static struct {
	uintptr_t start, end;
} areas[MAX_AREAS]; /* the kernel's, one after the other: the vDSO is the last */
static int count;
static int told; /* the child's wl_child_pipe */
static uintptr_t length, largest; /* of all of them, and of one: bytes */

static void look(void)
{
	static const char *const names[] = {"[vvar]", "[vvar_vclock]", "[sigpage]", "[vdso]"};
	char line[4096];
	int fd = MUST(open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
	FILE *file = fdopen(fd, "r");
	count = 0;
	while (fgets(line, sizeof line, file))
		for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
			if (strstr(line, names[i])) {
				CHECK(count < MAX_AREAS, "there are more of the kernel's areas than this knows");
				CHECK(sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &areas[count].start, &areas[count].end) == 2, "%s", line);
				count++;
			}
	fclose(file);
	length = count ? areas[count - 1].end - areas[0].start : 0;
	for (int i = 0; i < count; i++)
		if (areas[i].end - areas[i].start > largest)
			largest = areas[i].end - areas[i].start;
}

/* All of them, the last one first where that makes room for those before it. */
static void move(uintptr_t to)
{
	uintptr_t by = to - areas[0].start;
	for (int i = count - 1; i >= 0; i--) {
		size_t size = areas[i].end - areas[i].start;
		MUST(mremap((void *)areas[i].start, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, areas[i].start + by));
	}
}

static void is_at(const char *who, uintptr_t start)
{
	look();
	CHECK(count && areas[0].start == start, "%s has the kernel's areas at %#" PRIxPTR ", not at %#" PRIxPTR, who,
	      count ? areas[0].start : 0, start);
	CHECK(!memcmp((void *)areas[count - 1].start, "\177ELF", 4), "%s has no vDSO in its [vdso]", who);
}

static void grandchild(void *at)
{
	uintptr_t start = (uintptr_t)at + largest;
	close(told);
	move(start);
	wl_child_ready_wait();
	is_at("the grandchild", start);
}

static void child(void *at)
{
	MUST(munmap(at, 2 * length));
	move((uintptr_t)at);
	look();
	told = wl_child_pipe[1];
	pid_t own = wl_child(grandchild, at);
	wl_child_pipe[1] = told;
	wl_child_ready_wait();
	is_at("the child", (uintptr_t)at);
	wl_end(own);
}

int main(void)
{
	wl_begin();
	if (!getauxval(AT_SYSINFO_EHDR))
		wl_skip("the kernel gives no vDSO");
	look();
	uintptr_t original = areas[0].start;
	size_t size = 2 * length;
	unsigned char *memory = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	memset(memory, 0x5a, size);
	pid_t first = wl_child(child, memory);
	wl_ready_wait();
	wl_end(first);
	for (size_t i = 0; i < size; i++)
		CHECK(memory[i] == 0x5a, "the parent's memory has changed at %zu", i);
	is_at("the parent", original);
	wl_pass();
}
