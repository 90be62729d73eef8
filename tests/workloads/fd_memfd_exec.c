// SPDX-License-Identifier: Apache-2.0
/* memfds that may and may not be executed (MFD_EXEC, MFD_NOEXEC_SEAL). */
/* wl: */
#include "fd.h"
#ifndef MFD_EXEC
#define MFD_NOEXEC_SEAL 8U
#define MFD_EXEC 0x10U
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif

int main(void)
{
	wl_begin();
	int yes = memfd_create("yes", MFD_EXEC), no = memfd_create("no", MFD_NOEXEC_SEAL);
	if (yes == -1 || no == -1)
		wl_skip("the kernel knows no MFD_EXEC (6.3)");
	fd_put(yes, "#!", 2);
	fd_put(no, "#!", 2);
	struct fd_facts was_yes = fd_look(yes), was_no = fd_look(no);
	int seals = MUST(fcntl(no, F_GET_SEALS));
	wl_ready_wait();
	fd_check(&was_yes, "executable");
	fd_check(&was_no, "not executable");
	CHECK(fcntl(no, F_GET_SEALS) == seals, "seals are %#x, were %#x", (unsigned)fcntl(no, F_GET_SEALS), (unsigned)seals);
	CHECK(fchmod(no, 0777) == -1 && errno == EPERM, "can be made executable");
	wl_pass();
}
