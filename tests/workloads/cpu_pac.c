// SPDX-License-Identifier: Apache-2.0
/* Pointer-authentication keys of aarch64: each key signs as before, in the first thread and in another. */
/* wl: */
#include "wl.h"
#ifdef __aarch64__
#include <asm/hwcap.h>
#include <sys/auxv.h>

enum { keys = 5 };
static bool generic;

static void sign(uint64_t *out)
{
	static const uint64_t value = 0x0000aaaabbbbc000, context = 0x1234567812345678;
	for (int i = 0; i < 4; i++)
		out[i] = value;
	__asm__(".arch armv8.3-a\n pacia %0, %1" : "+r"(out[0]) : "r"(context));
	__asm__(".arch armv8.3-a\n pacib %0, %1" : "+r"(out[1]) : "r"(context));
	__asm__(".arch armv8.3-a\n pacda %0, %1" : "+r"(out[2]) : "r"(context));
	__asm__(".arch armv8.3-a\n pacdb %0, %1" : "+r"(out[3]) : "r"(context));
	if (generic)
		__asm__(".arch armv8.3-a\n pacga %0, %1, %2" : "=r"(out[4]) : "r"(value), "r"(context));
}

static void check(const uint64_t *was, const char *who)
{
	uint64_t now[keys] = {0};
	sign(now);
	for (int i = 0; i < keys; i++)
		CHECK(now[i] == was[i], "%s: key %d signs %" PRIx64 ", signed %" PRIx64, who, i, now[i], was[i]);
}

static volatile int ready, go;

static void *body(void *unused)
{
	uint64_t mine[keys] = {0};
	(void)unused;
	sign(mine);
	ready = 1;
	while (!go)
		usleep(20000);
	check(mine, "a thread");
	return NULL;
}

int main(void)
{
	pthread_t thread;
	uint64_t mine[keys] = {0};
	wl_begin();
	if (!(getauxval(AT_HWCAP) & HWCAP_PACA))
		wl_skip("this processor signs no pointers");
	generic = getauxval(AT_HWCAP) & HWCAP_PACG;
	sign(mine);
	/* a signature has 7 bits: two of them may agree */
	CHECK(mine[0] != mine[1] || mine[1] != mine[2] || mine[2] != mine[3], "all keys sign alike");
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!ready)
		usleep(1000);
	wl_ready_wait();
	check(mine, "the first thread");
	go = 1;
	MUST0(pthread_join(thread, NULL));
	wl_say("exercised: address keys%s", generic ? ", generic key" : "");
	wl_pass();
}
#else
int main(void) { wl_skip("only aarch64 signs pointers"); }
#endif
