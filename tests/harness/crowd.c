// SPDX-License-Identifier: Apache-2.0
/* The parent of a crowd of workloads, which are dumped and restored as one tree: see crowd.py.
 *
 *     crowd -- DIRECTORY PROGRAM [ARGUMENT...] [-- DIRECTORY PROGRAM ...]
 *
 * Starts each in its directory, in a session of its own, as harness/workload.py would: nothing to read, its output
 * appended to the file `out` there.  Says "started PID" of each, in order; "ended PID WAITSTATUS" of each when it has
 * ended; and "pass" when all have. */
#include "../workloads/wl.h"

static void become(const char *directory, char **command)
{
	MUST(setsid());
	MUST(chdir(directory));
	MUST(setenv("WL_DIR", directory, 1));
	int out = MUST(open("out", O_WRONLY | O_APPEND));
	MUST(dup2(out, 1));
	MUST(dup2(out, 2));
	MUST(close(out));
	MUST(execv(command[0], command));
}

int main(int argc, char **argv)
{
	for (int at = 1; at < argc;) {
		CHECK(!strcmp(argv[at], "--") && at + 2 < argc, "usage: crowd -- DIRECTORY PROGRAM [ARGUMENT...] ...");
		const char *directory = argv[at + 1];
		char **command = argv + at + 2;
		for (at += 3; at < argc && strcmp(argv[at], "--"); at++)
			;
		pid_t child = MUST(fork());
		if (child == 0) {
			if (at < argc)
				argv[at] = NULL;
			become(directory, command);
		}
		wl_say("started %d", child);
	}
	for (;;) {
		int status;
		pid_t child = waitpid(-1, &status, 0);
		if (child > 0)
			wl_say("ended %d %d", child, status);
		else if (errno == ECHILD)
			wl_pass();
		else
			CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
	}
}
