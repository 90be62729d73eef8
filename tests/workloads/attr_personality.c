// SPDX-License-Identifier: Apache-2.0
/* Personalities: no randomisation, another kernel version, readable means executable; what they do goes on. */
/* wl: */
#include "wl.h"

#include <sys/personality.h>
#include <sys/utsname.h>

static void child(void *argument)
{
	unsigned long kind = (unsigned long)argument;
	struct utsname name;
	MUST(personality(kind));
	char *before = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	strcpy(before, "content");
	wl_child_ready_wait();
	CHECK((unsigned long)personality(0xffffffff) == kind, "personality is %x, was %lx", personality(0xffffffff), kind);
	MUST(uname(&name));
	CHECK((strncmp(name.release, "2.6.", 4) == 0) == ((kind & UNAME26) != 0), "kernel version is %s", name.release);
	CHECK(!strcmp(before, "content"), "memory changed");
	char *after = MUST(mmap(NULL, 1 << 16, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	int executable;
	wl_smaps_kb(after, after + 1, "Rss", "ex", &executable);
	CHECK(executable == ((kind & READ_IMPLIES_EXEC) != 0), "new memory is %sexecutable", executable ? "" : "not ");
	_exit(0);
}

int main(void)
{
	static const unsigned long kinds[] = {ADDR_NO_RANDOMIZE, UNAME26, READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS | SHORT_INODE, PER_SVR4};
	pid_t pids[5];
	wl_begin();
	for (int i = 0; i < 5; i++)
		pids[i] = wl_child(child, (void *)kinds[i]);
	wl_ready_wait();
	for (int i = 0; i < 5; i++)
		wl_end(pids[i]);
	wl_pass();
}
