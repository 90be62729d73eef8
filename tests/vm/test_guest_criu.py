# SPDX-License-Identifier: Apache-2.0
"""Images travel both ways between Torpor and CRIU on other architectures: test_exchange[ARCH-KERNEL-NAME-MODE].

The cases are run by guest/exchange.py with Debian's CRIU (vmlab/criu.py).  What CRIU alone fails on in the same way is
counted apart, as on the host.  x86_64 exchanges images without a guest; armv7 cannot: Debian has no CRIU for armhf.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from vmlab import criu
from vmlab.targets import KERNELS

from harness.modes import selected
from harness.workload import all_workloads

MODULE = "exchange"
MODES = ("from-criu", "to-criu", "same-images")
# What `make test-vm` takes: a case is two or three starts of CRIU and of Torpor under emulation, so that all of them
# would take hours.  TORPOR_EXCHANGE=all takes every workload.
EXCHANGED = (
    "cpu_bases", "cpu_bti", "cpu_dscr", "cpu_pac", "cpu_registers", "cpu_rseq", "cpu_sve", "cpu_tagged", "fd_epoll",
    "fd_pipe", "mem_anon", "mem_file_private", "mem_shared_anon", "mem_thp", "mem_vdso", "py_threads", "sig_actions",
    "sig_pending", "sk_pair_stream", "sys_interrupted", "sys_poll", "time_itimers", "time_posix", "tree_sessions",
    "tree_zombies", "tty_session",
)  # fmt: skip


def cases() -> Iterator[Any]:
    yield "works"
    chosen = selected() if os.environ.get("TORPOR_MODES") else list(MODES)
    for workload in all_workloads():
        for mode in chosen:
            if mode in MODES and (workload.name in EXCHANGED or os.environ.get("TORPOR_EXCHANGE") == "all"):
                yield f"{workload.name}-{mode}"


def exchange(guests: Any, arch: str, kernel: str, case: str) -> None:
    try:
        print(guests.check(arch, kernel, MODULE, case))
    except pytest.skip.Exception as why:
        if "excused: " in str(why):
            pytest.xfail(str(why))
        raise


@pytest.mark.vm
@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", criu.ARCHITECTURES)
def test_exchange(guests, arch: str, kernel: str, case: str) -> None:  # type: ignore[no-untyped-def]
    exchange(guests, arch, kernel, case)
