// SPDX-License-Identifier: Apache-2.0
/* The main stack grows by being used: before the dump, and on after it; its limit stays. */
/* wl: */
#include "wl.h"

static __attribute__((noinline)) uint64_t deep(int depth, bool check)
{
	volatile uint64_t local[64];
	for (int i = 0; i < 64; i++)
		local[i] = wl_word((uint64_t)depth, (uint64_t)i);
	uint64_t below = depth ? deep(depth - 1, check) : 0;
	for (int i = 0; i < 64; i++)
		CHECK(local[i] == wl_word((uint64_t)depth, (uint64_t)i), "depth %d: word %d of the stack changed", depth, i);
	return below + local[0];
}

static __attribute__((noinline)) uint64_t wait_deep(int depth)
{
	volatile uint64_t local[64];
	for (int i = 0; i < 64; i++)
		local[i] = wl_word((uint64_t)depth + 5000, (uint64_t)i);
	uint64_t sum = 0;
	if (depth)
		sum = wait_deep(depth - 1);
	else
		wl_ready_wait();
	for (int i = 0; i < 64; i++)
		CHECK(local[i] == wl_word((uint64_t)depth + 5000, (uint64_t)i), "depth %d: word %d of the stack changed", depth, i);
	return sum + local[0];
}

int main(void)
{
	wl_begin();
	uint64_t before = deep(3000, false); /* 1.6 MiB, which stay mapped */
	wait_deep(1000);
	CHECK(deep(3000, true) == before, "another sum");
	CHECK(deep(10000, true) != 0, "nothing"); /* 5.4 MiB: more than ever before */
	wl_pass();
}
