// SPDX-License-Identifier: Apache-2.0
/* A listening UNIX socket that was bound to a name of its own, linked to the name that clients know, and lost the first:
 * so do servers that take no name from another (supervisord). One of its connections is there, too. */
/* wl: */
#include "sk.h"

int main(void)
{
	char first[PATH_MAX], known[PATH_MAX];
	wl_begin();
	snprintf(first, sizeof first, "%s/first", getenv("WL_DIR"));
	snprintf(known, sizeof known, "%s/known", getenv("WL_DIR"));
	int server = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)), client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_bind(server, first);
	MUST(chmod(first, 0620));
	MUST(listen(server, 5));
	MUST(link(first, known));
	MUST(unlink(first));
	sk_connect(client, known);
	int accepted = MUST(accept(server, NULL, NULL));
	fd_put(client, "queued", 6);
	wl_ready_wait();
	sk_names(server, first, "-", "server");
	sk_names(accepted, first, NULL, "accepted");
	CHECK(access(first, F_OK) == -1, "the first name is back");
	struct stat facts;
	MUST(stat(known, &facts));
	CHECK((facts.st_mode & 07777) == 0620, "mode %#o", facts.st_mode);
	fd_expect_text(accepted, "queued", "accepted");
	int late = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	sk_connect(late, known);
	int again = MUST(accept(server, NULL, NULL));
	fd_put(late, "hello", 5);
	fd_expect_text(again, "hello", "accepted after the restore");
	wl_pass();
}
