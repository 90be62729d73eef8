// SPDX-License-Identifier: Apache-2.0
/* Sealed memfds: all seals are back, also those that forbid what a restore has to do (write, grow). */
/* wl: */
#include "fd.h"

static const int seals[] = {
	F_SEAL_SHRINK,
	F_SEAL_GROW,
	F_SEAL_WRITE,
	F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL,
	F_SEAL_FUTURE_WRITE,
	F_SEAL_SEAL,
};

int main(void)
{
	enum { count = sizeof seals / sizeof *seals };
	struct fd_facts was[count];
	char content[20];
	wl_begin();
	for (int i = 0; i < count; i++) {
		int fd = MUST(memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC));
		snprintf(content, sizeof content, "content %d", i);
		fd_put(fd, content, strlen(content));
		MUST(fcntl(fd, F_ADD_SEALS, seals[i]));
		was[i] = fd_look(fd);
	}
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		int now = fcntl(was[i].fd, F_GET_SEALS);
		CHECK(now == seals[i], "seals are %#x, were %#x", (unsigned)now, (unsigned)seals[i]);
		snprintf(content, sizeof content, "memfd %d", i);
		fd_check(&was[i], content);
		MUST(lseek(was[i].fd, 0, SEEK_SET));
		snprintf(content, sizeof content, "content %d", i);
		fd_expect_text(was[i].fd, content, "sealed memfd");
		if (seals[i] & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
			CHECK(pwrite(was[i].fd, "x", 1, 0) == -1 && errno == EPERM, "a sealed memfd can be written");
		else
			MUST(pwrite(was[i].fd, "x", 1, 0));
	}
	wl_pass();
}
