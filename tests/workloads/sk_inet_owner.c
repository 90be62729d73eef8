// SPDX-License-Identifier: Apache-2.0
/* Internet sockets that another user made belong to that user: listening, bound, closed, UDP. */
/* wl: */
#include "sk.h"

int main(void)
{
	enum { user = 1234, group = 4321 };
	struct stat facts;
	wl_begin();
	MUST(setresgid(-1, group, -1));
	MUST(setresuid(-1, user, -1));
	int listening = MUST(socket(AF_INET, SOCK_STREAM, 0));
	int port = sk_bind_ip(listening, "127.0.0.1", 0);
	MUST(listen(listening, 5));
	int bound = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	sk_bind_ip(bound, "127.0.0.1", 0);
	int fresh = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	MUST(setresuid(-1, 0, -1));
	MUST(setresgid(-1, 0, -1));
	int roots = MUST(socket(AF_INET, SOCK_STREAM, 0));
	wl_ready_wait();
	const int theirs[] = {listening, bound, fresh};
	for (size_t i = 0; i < sizeof theirs / sizeof theirs[0]; i++) {
		MUST(fstat(theirs[i], &facts));
		CHECK(facts.st_uid == user && facts.st_gid == group, "socket %zu belongs to %u:%u, not %d:%d", i, facts.st_uid,
		      facts.st_gid, user, group);
	}
	MUST(fstat(roots, &facts));
	CHECK(facts.st_uid == 0 && facts.st_gid == 0, "root's socket belongs to %u:%u", facts.st_uid, facts.st_gid);
	sk_connect_ip(MUST(socket(AF_INET, SOCK_STREAM, 0)), "127.0.0.1", port);
	close(MUST(accept(listening, NULL, NULL)));
	wl_pass();
}
