// SPDX-License-Identifier: Apache-2.0
/* Protection keys that are allocated, one of them freed again, without memory under them; what each may do. */
/* wl: */
#include "wl.h"

int main(void)
{
	wl_begin();
	int keys[3];
	for (int i = 0; i < 3; i++) {
		keys[i] = pkey_alloc(0, i ? PKEY_DISABLE_WRITE : PKEY_DISABLE_ACCESS);
		if (keys[i] < 0)
			wl_skip("no protection keys: %s", strerror(errno));
	}
	MUST(pkey_free(keys[1]));
	int rights = MUST(pkey_get(keys[2]));
	char *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	wl_ready_wait();
	for (int i = 0; i < 3; i++) {
		int result = pkey_mprotect(memory, 65536, PROT_READ, keys[i]);
		EXPECT(result == (i == 1 ? -1 : 0), "pkey_mprotect with key %d of 3: %d", i, result);
	}
	EXPECT(pkey_get(keys[0]) == PKEY_DISABLE_ACCESS, "rights %d of the first", pkey_get(keys[0]));
	EXPECT(pkey_get(keys[2]) == rights, "rights %d of the last, were %d", pkey_get(keys[2]), rights);
	int next = pkey_alloc(0, 0);
	EXPECT(next == keys[1], "the next key is %d, was to be %d", next, keys[1]);
	wl_pass();
}
