// SPDX-License-Identifier: Apache-2.0
/* A socket that was made in another network namespace than that of its program, which came back from there. */
/* wl: refused=it_was_made_in_another_network_namespace */
#include "sk.h"

int main(void)
{
	wl_begin();
	int home = MUST(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
	if (unshare(CLONE_NEWNET) == -1)
		wl_skip("no network namespace: %s", strerror(errno));
	int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
	sk_bind_ip(fd, "0.0.0.0", 0);
	MUST(listen(fd, 3));
	MUST(setns(home, CLONE_NEWNET));
	close(home);
	wl_ready_wait();
	wl_pass();
}
