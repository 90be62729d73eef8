// SPDX-License-Identifier: Apache-2.0
/* A filter program of eBPF on a socket, which the kernel shows to nobody. */
/* wl: refused=a_filter_program_is_attached */
#include "sk.h"
#include <linux/bpf.h>

#ifndef SO_ATTACH_BPF
#define SO_ATTACH_BPF 50
#endif

int main(void)
{
	struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = -1}, {.code = BPF_JMP | BPF_EXIT}};
	union bpf_attr program;
	int pair[2];
	wl_begin();
	memset(&program, 0, sizeof program);
	program.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	program.insn_cnt = sizeof code / sizeof *code;
	program.insns = (uintptr_t)code;
	program.license = (uintptr_t) "GPL";
	int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &program, sizeof program);
	if (fd == -1)
		wl_skip("bpf: %s", strerror(errno));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	MUST(setsockopt(pair[0], SOL_SOCKET, SO_ATTACH_BPF, &fd, sizeof fd));
	close(fd);
	wl_ready_wait();
	fd_put(pair[1], "x", 1);
	fd_expect_text(pair[0], "x", "filtered socket");
	wl_pass();
}
