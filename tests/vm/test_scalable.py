# SPDX-License-Identifier: Apache-2.0
"""SVE on aarch64: what every system call destroys is put back.  The cases are in guest/scalable.py."""

import pytest
from vmlab.targets import KERNELS

MODULE = "scalable"
CASES = [f"{way}-{length}" for way in ("stepped", "executed", "orphaned") for length in (16, 32, 64, 256)]


@pytest.mark.vm
@pytest.mark.parametrize("cpu", ["max"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", ["aarch64"])
def test_scalable(guests, arch: str, kernel: str, case: str, cpu: str) -> None:  # type: ignore[no-untyped-def]
    print(guests.check(arch, kernel, MODULE, case, cpu))
