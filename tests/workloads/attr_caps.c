// SPDX-License-Identifier: Apache-2.0
/* Capability sets (permitted, effective, inheritable, bounding, ambient) of a process, a child and one thread. */
/* wl: */
#include "wl.h"

#include <linux/capability.h>

struct sets {
	uint64_t permitted, effective, inheritable, bounding, ambient;
};

static struct sets sets_now(void)
{
	static __thread char path[64], text[64];
	struct sets now;
	snprintf(path, sizeof path, "/proc/self/task/%d/status", gettid());
	static const char *const keys[] = {"CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb"};
	uint64_t *fields[] = {&now.permitted, &now.effective, &now.inheritable, &now.bounding, &now.ambient};
	for (int i = 0; i < 5; i++) {
		CHECK(wl_proc_field(path, keys[i], text, sizeof text), "no %s", keys[i]);
		*fields[i] = strtoull(text, NULL, 16);
	}
	return now;
}

static void same(const char *who, struct sets was)
{
	struct sets now = sets_now();
	CHECK(!memcmp(&now, &was, sizeof now), "%s: prm %" PRIx64 " eff %" PRIx64 " inh %" PRIx64 " bnd %" PRIx64 " amb %" PRIx64 ", were %" PRIx64
	      " %" PRIx64 " %" PRIx64 " %" PRIx64 " %" PRIx64, who, now.permitted, now.effective, now.inheritable, now.bounding, now.ambient,
	      was.permitted, was.effective, was.inheritable, was.bounding, was.ambient);
}

static void set(uint64_t permitted, uint64_t effective, uint64_t inheritable)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
						 {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)}};
	MUST((int)syscall(SYS_capset, &header, data));
}

static volatile int go;

static void *body(void *unused)
{
	(void)unused;
	struct sets now = sets_now();
	set(now.permitted & ~(1UL << CAP_SYS_TIME), 0, 1UL << CAP_NET_BIND_SERVICE);
	now = sets_now();
	go = 1;
	while (go != 2)
		usleep(50000);
	same("thread", now);
	return NULL;
}

static void child(void *unused)
{
	(void)unused;
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE));
	MUST(prctl(PR_CAPBSET_DROP, CAP_AUDIT_WRITE));
	set(1UL << CAP_KILL | 1UL << CAP_NET_RAW | 1UL << CAP_CHOWN, 1UL << CAP_KILL, 1UL << CAP_NET_RAW | 1UL << CAP_CHOWN);
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0));
	struct sets now = sets_now();
	CHECK(now.ambient == 1UL << CAP_NET_RAW, "ambient is %" PRIx64, now.ambient);
	wl_child_ready_wait();
	same("child", now);
	CHECK(chown("/", (uid_t)-1, (gid_t)-1) == 0 || errno == EPERM, "chown");
	_exit(0);
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	if (getuid() != 0)
		wl_skip("needs root");
	pid_t pid = wl_child(child, NULL);
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!go)
		usleep(1000);
	struct sets now = sets_now();
	set(now.permitted, now.effective & ~(1UL << CAP_SYS_ADMIN | 1UL << CAP_SYS_PTRACE), 0);
	now = sets_now();
	wl_ready_wait();
	same("main thread", now);
	go = 2;
	MUST0(pthread_join(thread, NULL));
	wl_end(pid);
	wl_pass();
}
