// SPDX-License-Identifier: Apache-2.0
/* Securebits, locked ones too, and no_new_privs: of a child and of one thread each. */
/* wl: */
#include "wl.h"

#include <linux/securebits.h>

static volatile int go;

static void *body(void *unused)
{
	(void)unused;
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); /* this thread only */
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS));
	go = 1;
	while (go != 2)
		usleep(50000);
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "thread: no_new_privs is lost");
	CHECK(prctl(PR_GET_SECUREBITS) == SECBIT_KEEP_CAPS, "thread: securebits are %x", prctl(PR_GET_SECUREBITS));
	return NULL;
}

static void child(void *unused)
{
	(void)unused;
	int bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
	MUST(prctl(PR_SET_SECUREBITS, bits));
	wl_child_ready_wait();
	CHECK(prctl(PR_GET_SECUREBITS) == bits, "child: securebits are %x, were %x", prctl(PR_GET_SECUREBITS), bits);
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "child: no_new_privs is set");
	CHECK(prctl(PR_SET_SECUREBITS, 0) == -1, "a locked bit can be cleared");
	_exit(0);
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	if (prctl(PR_SET_SECUREBITS, 0) == -1)
		wl_skip("needs CAP_SETPCAP");
	pid_t pid = wl_child(child, NULL);
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!go)
		usleep(1000);
	wl_ready_wait();
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "main thread: no_new_privs is set");
	CHECK(prctl(PR_GET_SECUREBITS) == 0, "main thread: securebits are %x", prctl(PR_GET_SECUREBITS));
	go = 2;
	MUST0(pthread_join(thread, NULL));
	wl_end(pid);
	wl_pass();
}
