# SPDX-License-Identifier: Apache-2.0
"""System V segments at addresses that shmat(2) does not take, as 32-bit ARM has them, on any machine."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.modes import MODES, run_case
from harness.tools import TORPOR_WARM
from harness.workload import DIRECTORY, Workload
from torpor.arch import native

ADDR_NO_RANDOMIZE = 0x40000


@pytest.fixture
def _not_random() -> Iterator[None]:
    """Original and restored have the same layout: a kernel that chose would choose the very places that they had."""
    libc = ctypes.CDLL(None)
    before = libc.personality(0xFFFFFFFF)
    libc.personality(before | ADDR_NO_RANDOMIZE)
    yield
    libc.personality(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.usefixtures("_not_random")
def test_where_the_kernel_would_put_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native(), "shmlba", 1 << 30)
    run_case(Workload(DIRECTORY / "mem_sysv.c"), MODES["restore"], {"torpor": TORPOR_WARM}, tmp_path)
