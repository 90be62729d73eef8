# SPDX-License-Identifier: Apache-2.0
"""The first test of every architecture: programs run inside tasks that sleep, read, wait on a futex, poll and spin.

The cases are in guest/injection.py.
"""

import re
from pathlib import Path

import pytest
from vmlab.targets import KERNELS, TARGETS

_WAYS = ("untouched", "stepped", "stepped_program", "executed", "orphaned")
_VICTIMS = re.findall(r'^    "(\w+)": Victim\(', (Path(__file__).parent / "guest/injection.py").read_text(), re.M)
MODULE = "injection"
CASES = ["kernel", *(f"{way}-{victim}" for way in _WAYS for victim in _VICTIMS), "caught-epoll", "caught-timed_read",
         "team-read", "team-spin", "core_message-read"]  # fmt: skip


@pytest.mark.vm
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", TARGETS)
def test_injection(guests, arch: str, kernel: str, case: str) -> None:  # type: ignore[no-untyped-def]
    print(guests.check(arch, kernel, MODULE, case))
