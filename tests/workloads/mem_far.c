// SPDX-License-Identifier: Apache-2.0
/* Memory further up than a program is given any unasked, as far as this machine's reaches (s390x: to 2^64 - 4096): its
 * own, a file's with changed text, shared, and a stack on which a signal handler is. */
/* wl: */
#include "wl.h"

enum { page = WL_PAGE, pages = 8 };
static const uint64_t places[] = {
	1ull << 47, 1ull << 48, 1ull << 51, (1ull << 52) - 64 * page, 1ull << 54, 1ull << 62, (1ull << 63) - 4 * page,
	0xfull << 60, -(1ull << 20),
};
enum { count = sizeof places / sizeof places[0] };
static int ends[2];
static volatile bool inside;

static void *map(uint64_t at, size_t size, int flags, int fd)
{
	return mmap((void *)(uintptr_t)at, size, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE | flags, fd, 0);
}

static void handler(int number)
{
	struct pollfd pipe = {.fd = ends[0], .events = POLLIN};
	struct timespec limit = {600, 0};
	uint64_t words[64];
	wl_fill(words, sizeof words, (uint64_t)number);
	inside = true;
	CHECK(ppoll(&pipe, 1, &limit, NULL) == 1, "ppoll: %s", strerror(errno));
	wl_same(words, sizeof words, (uint64_t)number, "on a handler's stack");
}

static void *thread(void *unused)
{
	uint64_t words[64];
	wl_fill(words, sizeof words, 5);
	MUST(raise(SIGUSR1));
	wl_same(words, sizeof words, 5, "on a stack");
	return unused;
}

int main(void)
{
	char *found[count], *highest = NULL;
	pthread_attr_t attributes;
	pthread_t far;
	wl_begin();
	if (sizeof(void *) == 4)
		wl_skip("addresses have 32 bits");
	for (int i = 0; i < count; i++) {
		found[i] = map(places[i], pages * page, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		if (found[i] == MAP_FAILED)
			continue;
		CHECK((uintptr_t)found[i] == places[i], "is at %p", (void *)found[i]);
		wl_fill(found[i], 4 * page, places[i]); /* and the others are never touched */
		MUST(mprotect(found[i], page, PROT_NONE));
		highest = found[i];
	}
	if (!highest)
		wl_skip("no memory beyond 2^47: %s", strerror(errno));
	int program = MUST(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), shared = MUST(memfd_create("far", MFD_CLOEXEC));
	uint64_t at = (uint64_t)(uintptr_t)highest + 2 * pages * page;
	char *text = MUST(map(at, page, MAP_PRIVATE, program));
	wl_fill(text, page, 3);
	MUST(mprotect(text, page, PROT_READ | PROT_EXEC));
	MUST(ftruncate(shared, page));
	char *common = MUST(map(at + 2 * page, page, MAP_SHARED, shared));
	wl_fill(common, page, 4);
	void *stack = MUST(map(at + 3 * page, 1 << 19, MAP_PRIVATE | MAP_ANONYMOUS, -1));
	MUST(pipe2(ends, O_CLOEXEC));
	MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler}, NULL));
	MUST0(pthread_attr_init(&attributes));
	MUST0(pthread_attr_setstack(&attributes, stack, 1 << 19));
	MUST0(pthread_create(&far, &attributes, thread, NULL));
	while (!inside)
		usleep(1000);
	wl_ready_wait();
	for (int i = 0; i < count; i++)
		if (found[i] != MAP_FAILED) {
			MUST(mprotect(found[i], page, PROT_READ));
			wl_same(found[i], 4 * page, places[i], "far up");
			wl_zero(found[i] + 4 * page, 4 * page, "untouched");
		}
	wl_same(text, page, 3, "text of a file");
	wl_same(common, page, 4, "shared");
	MUST(write(ends[1], "x", 1));
	MUST0(pthread_join(far, NULL));
	wl_pass();
}
