// SPDX-License-Identifier: Apache-2.0
/* A UNIX socket that was bound by a relative name, in a directory that is not the working directory any more. */
/* wl: */
#include "sk.h"

int main(void)
{
	wl_begin();
	MUST(mkdir("directory", 0700));
	MUST(chdir("directory"));
	int server = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(server, "name");
	MUST(listen(server, 5));
	MUST(chdir(".."));
	wl_ready_wait();
	sk_names(server, "name", "-", "listening");
	struct stat now;
	MUST(stat("directory/name", &now));
	CHECK(access("name", F_OK) == -1, "a socket file in the wrong directory");
	int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(client, "directory/name");
	fd_put(client, "hello", 5);
	fd_expect_text(MUST(accept(server, NULL, NULL)), "hello", "accepted");
	wl_pass();
}
