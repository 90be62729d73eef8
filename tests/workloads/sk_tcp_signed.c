// SPDX-License-Identifier: Apache-2.0
/* A listening socket that takes signed connections only: coming back without its keys, it would take any. */
/* wl: refused=it_wants_signed_connections */
#include "sk.h"

int main(void)
{
	wl_begin();
	int server = MUST(socket(AF_INET, SOCK_STREAM, 0));
	struct tcp_md5sig key = {.tcpm_keylen = 6, .tcpm_key = "secret"};
	struct sockaddr_in *peer = (struct sockaddr_in *)&key.tcpm_addr;
	peer->sin_family = AF_INET;
	peer->sin_addr.s_addr = htonl(0x7f000005);
	if (setsockopt(server, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key) == -1)
		wl_skip("TCP_MD5SIG: %s", strerror(errno));
	sk_bind_ip(server, "127.0.0.1", 0);
	MUST(listen(server, 5));
	wl_ready_wait();
	key.tcpm_keylen = 0;
	MUST(setsockopt(server, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key));
	wl_pass();
}
