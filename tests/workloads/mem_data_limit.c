// SPDX-License-Identifier: Apache-2.0
/* A process that may have no more memory of its own (RLIMIT_DATA): what is mapped read-only cannot be made writable. */
/* wl: refused=is_at_the_limit */
#include "wl.h"

static void handler(int number) { (void)number; }

int main(void)
{
	enum { page = WL_PAGE, length = 16 * page };
	struct sigaction action = {.sa_handler = handler};
	wl_begin();
	MUST(sigaction(SIGSEGV, &action, NULL));
	char *memory = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(memory, length, 1);
	MUST(setrlimit(RLIMIT_DATA, &(struct rlimit){page, page}));
	CHECK(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "the limit has no effect");
	wl_ready_wait();
	wl_same(memory, length, 1, "memory");
	MUST(sigaction(SIGSEGV, NULL, &action));
	CHECK(action.sa_handler == handler, "the handler is lost");
	wl_pass();
}
