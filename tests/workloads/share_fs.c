// SPDX-License-Identifier: Apache-2.0
/* Processes that share working directory, root and umask (clone with CLONE_FS). */
/* wl: */
#include "wl.h"

int main(void)
{
	char now[PATH_MAX], home[PATH_MAX];
	wl_begin();
	MUST(mkdir("below", 0755));
	MUST(getcwd(home, sizeof home) ? 0 : -1);
	umask(027);
	pid_t child = (pid_t)MUST(WL_CLONE(CLONE_FS | SIGCHLD));
	if (child == 0) {
		wl_wait();
		CHECK(umask(022) == 027, "umask was 027");
		MUST(chdir("below")); /* moves the parent, too */
		_exit(0);
	}
	pid_t stranger = MUST(fork());
	if (stranger == 0) {
		wl_wait();
		CHECK(getcwd(now, sizeof now) && !strcmp(now, home), "a forked child moved to %s", now);
		_exit(0);
	}
	wl_ready_wait();
	CHECK(syscall(SYS_kcmp, getpid(), child, 3 /* KCMP_FS */, 0, 0) == 0, "kcmp: two of them");
	CHECK(syscall(SYS_kcmp, getpid(), stranger, 3, 0, 0) != 0, "kcmp: shared with a forked child");
	wl_end(child);
	CHECK(umask(022) == 022, "the child's umask is not ours");
	CHECK(getcwd(now, sizeof now) && strlen(now) == strlen(home) + 6 && !strcmp(now + strlen(home), "/below"), "cwd is %s", now);
	wl_end(stranger);
	wl_pass();
}
