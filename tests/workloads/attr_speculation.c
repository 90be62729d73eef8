// SPDX-License-Identifier: Apache-2.0
/* A thread with speculation controls of its own. */
/* wl: refused=has_speculation_controls_of_its_own */
#include "wl.h"

static volatile int up, go;
static int was;

static void *body(void *unused)
{
	(void)unused;
	was = prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0) ? -errno : 0;
	up = 1;
	while (!go)
		usleep(2000);
	CHECK(prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0) == (PR_SPEC_PRCTL | PR_SPEC_DISABLE),
	      "speculation control is %d", prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0));
	return NULL;
}

int main(void)
{
	pthread_t thread;
	wl_begin();
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!up)
		usleep(1000);
	if (was)
		wl_skip("no control of speculation here: %s", strerror(-was));
	wl_ready_wait();
	go = 1;
	MUST0(pthread_join(thread, NULL));
	wl_pass();
}
