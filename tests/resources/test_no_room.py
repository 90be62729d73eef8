# SPDX-License-Identifier: Apache-2.0
"""Where the executors of a restore find room, and that a dump refuses a tree that leaves none."""

import os
import sys
from pathlib import Path

import pytest

import torpor
from check.support import Victim
from harness.modes import MODES, run_case
from harness.tools import TORPOR_WARM
from harness.workload import DIRECTORY, Workload
from torpor.arch import arm, native, x86_64
from torpor.arch.base import Arch
from torpor.check_tree import TreeReport
from torpor.engine.stub import SHORT_STACK
from torpor.errors import Refusal
from torpor.memory import layout
from torpor.memory.layout import Span

ARM = arm.ARCH
MIB = 1 << 20
PROGRAM: Span = (0x10000, 0x90000)
STACK: Span = (0xBEFD0000, 0xBF000000)
SIZE = layout.executors_size(1)


def place(spans: list[Span], arch: Arch = ARM, executors: int = 1) -> tuple[int, bool]:
    size = layout.executors_size(executors)
    stub, short = layout.around_stub(size, spans, arch)
    return layout.find_hole(size, [*spans, *stub], arch.user_end), short


def test_usual() -> None:
    assert place([PROGRAM, STACK]) == (layout.HOLE_FROM, False)


@pytest.mark.parametrize("end", [0x16000000, 0x17F00000, 0x18000000, 0x1A490000, 0xA5000000])
def test_large_heap(end: int) -> None:
    """One that leaves nothing free below the places that any stub may have: a stub with a short stack has fewer."""
    spans = [PROGRAM, (PROGRAM[1], end), STACK]
    hole, short = place(spans)
    assert short == (end > 0x17000000)
    assert end <= hole and all(hole + SIZE <= start or end <= hole for start, end in [*spans, *ARM.short_stub_layout])
    layout.check_room("task 7 (heap)", 1, spans, ARM)


def test_between_two_areas() -> None:
    """Room that is enough for one executor is not for a thousand."""
    spans = [(0x90000, 0x20000000), (0x22000000, 0xB7000000), STACK]
    assert place(spans) == (0x20000000, True)
    layout.check_room("task 7 (heap)", 1, spans, ARM)
    with pytest.raises(Refusal):
        layout.check_room("task 7 (heap)", 1000, spans, ARM)


def test_no_room() -> None:
    spans = [(0x90000, 0x60000000), (0x60000000, 0xB7000000), STACK]
    with pytest.raises(Refusal) as refused:
        layout.check_room("task 7 (heap)", 1, spans, ARM)
    assert refused.value.code == "no-room"
    words = str(refused.value)
    assert words.startswith("task 7 (heap): the tree's memory leaves no room for Torpor's own (a restore needs 1,408")
    assert "have less memory mapped" in words
    with pytest.raises(Refusal) as at_restore:
        place(spans)
    assert at_restore.value.code == "no-room" and "copy" not in str(at_restore.value)


def test_nobody_asks_where_addresses_are_plenty() -> None:
    spans = [(0x10000, x86_64.ARCH.user_end)]
    assert layout.around_stub(SIZE, spans, x86_64.ARCH) == ([x86_64.ARCH.stub_layout], False)
    layout.check_room("task 7 (heap)", 1, spans, x86_64.ARCH)


root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@root
@pytest.mark.parametrize("name", ["attr_rlimits", "mem_vdso", "tree_deep"])
def test_short_stub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on 32-bit ARM, on any machine: the limit of the stub's stack is nobody's afterwards."""
    arch = native()
    monkeypatch.setattr(arch, "short_stub_layout", (arch.stub_layout,))
    monkeypatch.setattr(arch, "stub_layout", (0, arch.user_end))
    run_case(Workload(DIRECTORY / f"{name}.c"), MODES["restore"], {"torpor": TORPOR_WARM}, tmp_path)


@root
def test_refused_at_the_dump(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arch = native()
    monkeypatch.setattr(arch, "short_stub_layout", ((0, arch.user_end),))
    monkeypatch.setattr(arch, "stub_layout", (0, arch.user_end))
    images = tmp_path / "images"
    images.mkdir()
    with Victim(tmp_path, sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(1000)") as victim:
        report = torpor.check(pid=victim.pid)
        assert isinstance(report, TreeReport) and [one.code for one in report.obstacles] == ["no-room"]
        with pytest.raises(Refusal, match="have less memory mapped"):
            torpor.dump(victim.pid, images)
        assert not (images / "inventory.img").exists() and victim.process.poll() is None


def test_length_of_a_short_stack() -> None:
    assert SHORT_STACK < 128 * MIB  # so far the kernel keeps away from the stack's beginning at least
