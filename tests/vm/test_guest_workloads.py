# SPDX-License-Identifier: Apache-2.0
"""Every workload, dumped and restored by guests: test_guest_workloads.py::test_in_guest[ARCH-KERNEL-NAME-MODE].

The cases are run by guest/workloads.py.  TORPOR_MODES chooses modes, as for tests/test_workloads.py.
"""

import os

import pytest
from vmlab.targets import KERNELS, TARGETS

from harness.modes import selected
from harness.workload import all_workloads

MODULE = "workloads"
MODES = selected() if os.environ.get("TORPOR_MODES") else ["restore", "leave-running"]
CASES = ["command_line", *(f"{workload.name}-{mode}" for workload in all_workloads() for mode in MODES)]


@pytest.mark.vm
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", TARGETS)
def test_in_guest(guests, arch: str, kernel: str, case: str) -> None:  # type: ignore[no-untyped-def]
    print(guests.check(arch, kernel, MODULE, case))
