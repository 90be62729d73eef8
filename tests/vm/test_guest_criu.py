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
# What `make test-vm` takes under the newer kernel, both ways: a case is a start or two of CRIU and of Torpor under
# emulation, ten seconds of processor time, so that all workloads would take hours: what architectures differ in, and a
# little of everything that CRIU restores.  TORPOR_EXCHANGE=all takes them all, in all modes, under both kernels.
EXCHANGED = (
    "cpu_bases", "cpu_bti", "cpu_dscr", "cpu_mte", "cpu_pac", "cpu_registers", "cpu_rseq", "cpu_sve", "cpu_tagged",
    "cpu_xstate", "fd_pipe", "mem_anon", "mem_file_private", "mem_shared_anon", "mem_thp", "mem_vdso", "py_threads",
    "sig_pending", "sk_pair_stream", "sys_interrupted", "sys_poll", "time_itimers", "time_posix", "tree_sessions",
)  # fmt: skip
# Of these, what it takes under the older one, too, and whose images it compares with CRIU's, value by value.
IN_SHORT = ("cpu_registers", "fd_pipe", "mem_shared_anon", "sys_interrupted", "time_posix", "tree_sessions")


def taken(workload: str, mode: str, kernel: str) -> bool:
    if os.environ.get("TORPOR_EXCHANGE") == "all":
        return True
    if mode == "same-images" or kernel != KERNELS[-1]:
        return workload in IN_SHORT
    return workload in EXCHANGED


def cases() -> Iterator[tuple[str, str, str]]:
    """Architecture, kernel, case."""
    modes = [mode for mode in (selected() if os.environ.get("TORPOR_MODES") else MODES) if mode in MODES]
    for arch in criu.ARCHITECTURES:
        for kernel in KERNELS:
            yield arch, kernel, "works"
            for workload in all_workloads():
                for mode in modes:
                    if taken(workload.name, mode, kernel):
                        yield arch, kernel, f"{workload.name}-{mode}"


def exchange(guests: Any, arch: str, kernel: str, case: str) -> None:
    try:
        print(guests.check(arch, kernel, MODULE, case))
    except pytest.skip.Exception as why:
        if "excused: " in str(why):
            pytest.xfail(str(why))
        raise


@pytest.mark.vm
@pytest.mark.parametrize("arch,kernel,case", list(cases()))
def test_exchange(guests, arch: str, kernel: str, case: str) -> None:  # type: ignore[no-untyped-def]
    exchange(guests, arch, kernel, case)
