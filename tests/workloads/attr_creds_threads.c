// SPDX-License-Identifier: Apache-2.0
/* Credentials that differ from thread to thread: ids, groups, bounding and ambient sets, securebits, no_new_privs. */
/* wl: */
#include "wl.h"

#include <linux/capability.h>
#include <linux/securebits.h>

enum { count = 6 };
static volatile int up, go;
static char before[count][8192];

static void status(char *text, size_t size)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/task/%d/status", gettid());
	FILE *file = fopen(path, "r");
	CHECK(file != NULL, "no %s", path);
	size_t at = 0;
	while (at + 512 < size && fgets(text + at, 512, file))
		if (!strncmp(text + at, "Uid", 3) || !strncmp(text + at, "Gid", 3) || !strncmp(text + at, "Groups", 6) || !strncmp(text + at, "Cap", 3) || !strncmp(text + at, "NoNew", 5))
			at += strlen(text + at);
	text[at] = 0;
	fclose(file);
	int bits = MUST(prctl(PR_GET_SECUREBITS));
	snprintf(text + at, size - at, "securebits %x\n", (unsigned)bits);
}

static void caps(uint64_t permitted, uint64_t effective, uint64_t inheritable)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
						 {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)}};
	MUST((int)syscall(SYS_capset, &header, data));
}

static void *body(void *argument)
{
	int i = (int)(intptr_t)argument;
	gid_t groups[3] = {11, 12, 70000};
	switch (i) {
	case 0:
		MUST((int)syscall(SYS_setgroups, 3L, groups));
		MUST((int)syscall(SYS_setresgid, 21L, 22L, 23L));
		MUST((int)syscall(SYS_setresuid, 31L, 32L, 33L));
		break;
	case 1:
		for (int cap = 0; cap <= 40; cap++)
			if (cap != CAP_CHOWN && cap != CAP_SETPCAP && prctl(PR_CAPBSET_READ, cap) == 1)
				MUST(prctl(PR_CAPBSET_DROP, cap));
		break;
	case 2:
		caps(1UL << CAP_KILL | 1UL << CAP_SETPCAP, 1UL << CAP_SETPCAP, 1UL << CAP_KILL);
		MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
		MUST(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS));
		break;
	case 3:
		MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED));
		break;
	case 4:
		MUST(prctl(PR_SET_KEEPCAPS, 1));
		MUST((int)syscall(SYS_setresuid, 41L, 41L, 41L));
		caps(1UL << CAP_NET_ADMIN, 1UL << CAP_NET_ADMIN, 0);
		MUST((int)syscall(SYS_setfsgid, 44L) >= 0 ? 0 : -1);
		break;
	default:
		break;
	}
	status(before[i], sizeof before[i]);
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	while (!go)
		usleep(50000);
	static __thread char now[8192];
	status(now, sizeof now);
	CHECK(!strcmp(now, before[i]), "thread %d: is\n%s, was\n%s", i, now, before[i]);
	return NULL;
}

int main(void)
{
	pthread_t threads[count];
	wl_begin();
	if (getuid() != 0)
		wl_skip("needs root");
	for (int i = 0; i < count; i++)
		MUST0(pthread_create(&threads[i], NULL, body, (void *)(intptr_t)i));
	while (up < count)
		usleep(1000);
	wl_ready_wait();
	go = 1;
	for (int i = 0; i < count; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_pass();
}
