# SPDX-License-Identifier: Apache-2.0
"""Which workloads every run takes under each kernel, and through which mode guests take them."""

# A little of everything: what an architecture or an old kernel would break first.
SUBSET = (
    "cpu_registers", "fd_epoll", "fd_ghost", "fd_pipe", "mem_file_private", "mem_shared_anon", "mem_vdso", "sig_masks",
    "sk_pair_stream", "sys_continued", "time_itimers", "tree_sessions",
)  # fmt: skip


def usual_mode(workload: str) -> str:
    """`both` has two dumps and a restore, `leave-running` one of each: a third less to emulate."""
    return "both" if workload in SUBSET else "leave-running"
