// SPDX-License-Identifier: Apache-2.0
/* A process that may use all I/O ports (iopl), and has given up the capability by which it got that. */
/* wl: refused=has_permission_for_all_I/O_ports_(iopl) */
#include "wl.h"
#ifdef __x86_64__
#include <linux/capability.h>
#include <sys/io.h>

int main(void)
{
	wl_begin();
	if (iopl(3))
		wl_skip("no I/O ports: %s", strerror(errno));
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[2];
	MUST((int)syscall(SYS_capget, &header, sets));
	sets[0].effective &= ~(1u << CAP_SYS_RAWIO);
	MUST((int)syscall(SYS_capset, &header, sets));
	wl_ready_wait();
	inb(0x80);
	wl_pass();
}
#else
int main(void)
{
	wl_begin();
	wl_skip("only x86 has I/O ports");
}
#endif
