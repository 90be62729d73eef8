// SPDX-License-Identifier: Apache-2.0
/* What a parent does not pass on: MADV_DONTFORK memory is in no child, MADV_WIPEONFORK memory is empty there. */
/* wl: */
#include "wl.h"

enum { page = WL_PAGE, length = 16 * page };
static char *kept, *dropped, *wiped;
static bool wipes;

static bool mapped(const void *at)
{
	unsigned char there;
	return mincore((void *)at, page, &there) == 0;
}

static void child(void *argument)
{
	(void)argument;
	CHECK(!mapped(dropped), "MADV_DONTFORK memory was inherited");
	/* its own memory, where the parent has what it does not pass on */
	char *own = MUST(mmap(dropped + 4 * page, 2 * page, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	wl_fill(own, page, 7);
	wl_child_ready_wait();
	CHECK(!mapped(dropped) && !mapped(dropped + 6 * page), "MADV_DONTFORK memory came into the child");
	wl_same(own, page, 7, "the child's own memory");
	wl_zero(own + page, page, "the child's untouched memory");
	if (wipes)
		wl_zero(wiped, length, "MADV_WIPEONFORK memory");
	wl_same(kept, length, 1, "inherited memory");
	_exit(0);
}

int main(void)
{
	wl_begin();
	char **all[] = {&kept, &dropped, &wiped};
	for (int i = 0; i < 3; i++) {
		*all[i] = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		wl_fill(*all[i], length, (uint64_t)i + 1);
	}
	MUST(madvise(dropped, length, MADV_DONTFORK));
	wipes = madvise(wiped, length, MADV_WIPEONFORK) == 0;
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	wl_same(dropped, length, 2, "MADV_DONTFORK memory of the parent");
	wl_same(wiped, length, 3, "MADV_WIPEONFORK memory of the parent");
	wl_end(pid);
	wl_pass();
}
