# SPDX-License-Identifier: Apache-2.0
"""A tree that uses the vDSO all the time is frozen when no thread is inside; and not for ever."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.workload import DIRECTORY, Workload
from torpor.engine import refreeze
from torpor.engine.freeze import FrozenTree, freeze
from torpor.kernel.maps import kind, read_maps

ROUNDS = 25

if os.geteuid():
    pytest.skip("freezing needs root", allow_module_level=True)


@pytest.fixture
def spinning(tmp_path: Path) -> Iterator[int]:
    """A program one thread of which reads the clock all the time, and checks that it does not go back."""
    program = Workload(DIRECTORY / "mem_vdso.c").compiled()
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=tmp_path)
    while "ready" not in (tmp_path / "out").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    yield process.pid
    process.terminate()
    assert process.wait(60) == 0, (tmp_path / "out").read_text()


def inside(tree: FrozenTree) -> list[int]:
    (process,) = tree.processes.values()
    (area,) = (area for area in read_maps(tree.root) if kind(area) == "vdso")
    threads = process.threads.values()
    return [thread.tid for thread in threads if area.start <= thread.arch.pc(thread.general) < area.end]


def let_go(tree: FrozenTree) -> None:
    for thread in tree.processes[tree.root].threads.values():
        thread.let_go()


def test_outside(spinning: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreeze, "SECONDS", 60)  # a busy machine must not take the tries away
    found = {freeze: 0, refreeze.freeze_outside: 0}
    for way in found:
        for _ in range(ROUNDS):
            tree = way(spinning)
            found[way] += bool(inside(tree))
            let_go(tree)
            time.sleep(0.0005)
    print(found)
    assert found[freeze] > ROUNDS // 5, "it is not found inside anyhow"
    assert found[refreeze.freeze_outside] < found[freeze] / 3, f"of {ROUNDS} times"


def test_not_for_ever(spinning: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []

    def counted(root: int, children: bool, timeout: float) -> FrozenTree:
        frozen.append(root)
        return freeze(root, children, timeout)

    monkeypatch.setattr(refreeze, "freeze", counted)
    monkeypatch.setattr(refreeze, "_inside", list)  # every thread
    let_go(refreeze.freeze_outside(spinning))
    assert 1 < len(frozen) <= refreeze.TRIES
    monkeypatch.setattr(refreeze, "SECONDS", 0)
    frozen.clear()
    let_go(refreeze.freeze_outside(spinning))
    assert len(frozen) == 1
