// SPDX-License-Identifier: Apache-2.0
/* UNIX sockets that were bound by names that go up and through "." and a symbolic link. */
/* wl: */
#include "sk.h"

int main(void)
{
	static const char *const names[] = {"../up", "./here", "link/linked"}, *const places[] = {"up", "directory/here", "other/linked"};
	int fds[3];
	wl_begin();
	MUST(mkdir("directory", 0700));
	MUST(mkdir("other", 0700));
	MUST(chdir("directory"));
	MUST(symlink("../other", "link"));
	for (int i = 0; i < 3; i++) {
		fds[i] = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
		sk_bind(fds[i], names[i]);
	}
	MUST(chdir(".."));
	wl_ready_wait();
	for (int i = 0; i < 3; i++) {
		struct stat now;
		sk_names(fds[i], names[i], "-", names[i]);
		MUST(stat(places[i], &now));
		int client = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
		sk_connect(client, places[i]);
		fd_put(client, "datagram", 8);
		fd_expect_text(fds[i], "datagram", names[i]);
	}
	wl_pass();
}
