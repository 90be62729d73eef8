# SPDX-License-Identifier: Apache-2.0
"""Every workload, dumped and restored by guests: test_guest_workloads.py::test_in_guest[ARCH-KERNEL-NAME-MODE].

The cases are run by guest/workloads.py.  Each workload is dumped with --leave-running, goes on, and is restored after
it has ended.  Those of SUBSET are dumped, ended, restored, and dumped once more with --leave-running (the mode `both`).
Some are dumped while the engine is killed, half-way (`killed`).  TORPOR_MODES chooses other modes, as for
tests/test_workloads.py.  ``-m vm_subset`` is a few minutes on all kernels.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from vmlab.session import TWO
from vmlab.subset import SUBSET, usual_mode
from vmlab.targets import KERNELS, TARGETS

from harness.modes import selected
from harness.workload import all_workloads

MODULE = "workloads"
# Where the engine is killed: registers, signals, calls.
KILLED = ("cpu_registers", "sig_pending", "sys_caught", "sys_others", "tree_zombie_leader")
DEAREST = "sys_caught"  # of these: under the newest kernel only
LARGEST = (
    "cpu_bti",
    "cpu_mte",
    "cpu_pac",
    "cpu_registers",
    "cpu_sve",
    "cpu_tagged",
)  # what the ordinary processor of the guests does not have

# Where another processor can get in between: tasks that run while others are being stopped, or are waited for.
AT_THE_SAME_TIME = (
    "attr_clear_tid", "fd_table_thread", "py_threads", "share_vm", "sig_pending", "sys_caught", "sys_in_turn",
)  # fmt: skip


def cases() -> Iterator[Any]:
    """Kernel, case."""
    for kernel in KERNELS:
        yield pytest.param(kernel, "command_line", marks=pytest.mark.vm_subset)
        for workload in all_workloads():
            few = [pytest.mark.vm_subset] if workload.name in SUBSET else []
            for mode in selected() if os.environ.get("TORPOR_MODES") else [usual_mode(workload.name)]:
                yield pytest.param(kernel, f"{workload.name}-{mode}", marks=few)
        newest = kernel == KERNELS[-1]
        for name in () if os.environ.get("TORPOR_MODES") else KILLED:
            few = [pytest.mark.vm_subset] if name == (DEAREST if newest else "sig_pending") else []
            if newest or name != DEAREST:
                yield pytest.param(kernel, f"{name}-killed", marks=few)


@pytest.mark.vm
@pytest.mark.vm_subset
@pytest.mark.parametrize("case", [f"{name}-{usual_mode(name)}" for name in LARGEST])
@pytest.mark.parametrize("cpu", ["max"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", ["aarch64"])
def test_on_the_largest_cpu(guests, arch: str, kernel: str, cpu: str, case: str) -> None:  # type: ignore[no-untyped-def]
    """What the ordinary processor of the guests does not have."""
    print(guests.check(arch, kernel, MODULE, case, cpu))


@pytest.mark.vm
@pytest.mark.parametrize(
    "case",
    [f"{name}-{usual_mode(name)}" for name in ("cpu_bases", "cpu_registers", "fd_pipe", "sig_altstack", "py_threads")],
)
@pytest.mark.parametrize("cpu", ["max,-cx16,-xsave"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", ["x86_64"])
def test_on_a_cpu_without_xsave(guests, arch: str, kernel: str, cpu: str, case: str) -> None:  # type: ignore[no-untyped-def]
    print(guests.check(arch, kernel, MODULE, case, cpu))


@pytest.mark.vm
@pytest.mark.parametrize("case", [f"{name}-{usual_mode(name)}" for name in AT_THE_SAME_TIME])
@pytest.mark.parametrize("cpu", [TWO])
@pytest.mark.parametrize(("arch", "kernel"), [("aarch64", KERNELS[-1]), ("arm", KERNELS[0])])
def test_on_two_processors(guests, arch: str, kernel: str, cpu: str, case: str) -> None:  # type: ignore[no-untyped-def]
    """Where the kernel forgets which call it has interrupted.  (The host has several; TORPOR_VM_CPUS=2 is for all.)"""
    print(guests.check(arch, kernel, MODULE, case, cpu))


@pytest.mark.vm
@pytest.mark.parametrize("kernel,case", list(cases()))
@pytest.mark.parametrize("arch", TARGETS)
def test_in_guest(guests, arch: str, kernel: str, case: str) -> None:  # type: ignore[no-untyped-def]
    print(guests.check(arch, kernel, MODULE, case))
