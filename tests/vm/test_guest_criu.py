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


def cases() -> Iterator[Any]:
    yield "works"
    chosen = selected() if os.environ.get("TORPOR_MODES") else ["from-criu", "to-criu"]
    for workload in all_workloads():
        for mode in chosen:
            if mode in ("from-criu", "to-criu"):
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
