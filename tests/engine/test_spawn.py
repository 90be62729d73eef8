# SPDX-License-Identifier: Apache-2.0
"""Making tasks: the first one, children that share or do not, threads; their ends; and that nothing is left of them."""

import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torpor.engine.process import run_engine
from torpor.engine.program import Program
from torpor.engine.spawn import Birth, Spawner
from torpor.engine.stub import Cradle
from torpor.errors import RestoreFailed, TorporError
from torpor.kernel.process import CLONE_FILES, CLONE_PARENT, CLONE_VM

HOLE = 0x200000000
WALL = 0x40000000

if os.geteuid():
    pytest.skip("giving PIDs needs root", allow_module_level=True)


def taken(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def gone(pid: int) -> bool:
    """Whether it is, its zombie too: orphans come to the test process, which is a subreaper."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return not taken(pid)


def free_pids(count: int) -> list[int]:
    """PIDs that nobody has, in a row; another process may get one in between, hardly ever."""
    highest = int(Path("/proc/sys/kernel/pid_max").read_text())
    while True:
        first = random.randrange(2000, highest - count)
        if not any(taken(pid) for pid in range(first, first + count)):
            return list(range(first, first + count))


@pytest.fixture
def spawned() -> Iterator[Callable[[int, Callable[[Spawner, list[int]], Any]], Any]]:
    """Run a function with a Spawner in an engine, kill what it made, see that it is gone."""
    used: list[int] = []

    def run(count: int, work: Callable[[Spawner, list[int]], Any]) -> Any:
        pids = free_pids(count)
        used.extend(pids)

        def engine(_: object) -> Any:
            spawner = Spawner(HOLE)
            try:
                spawner.first(pids[0], lambda cradle, pid: cradle.clone(pid))
                return work(spawner, pids)
            finally:
                spawner.kill()

        return run_engine(engine)

    yield run
    deadline = time.monotonic() + 5
    while (left := [pid for pid in used if not gone(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


def ask(executor: Any, *calls: tuple[Any, ...]) -> list[int]:
    program = Program()
    results = [program.call(*call) for call in calls]
    executor.run(program)
    return [result.value for result in results]


def test_first(spawned: Any) -> None:
    """It has its PID, no descriptors but the socket, and next to no memory."""

    def work(spawner: Spawner, pids: list[int]) -> Any:
        executor = spawner.executors[pids[0]]
        maps = Path(f"/proc/{pids[0]}/maps").read_text()
        return ask(executor, ("getpid",), ("getppid",)), os.getpid(), os.listdir(f"/proc/{pids[0]}/fd"), maps, pids

    (pid, ppid), engine, fds, maps, pids = spawned(1, work)
    assert (pid, ppid) == (pids[0], engine)
    assert fds == ["0"]
    assert len(maps.splitlines()) <= 9 and "python" not in maps


def test_children(spawned: Any) -> None:
    """More than one message of descriptors holds; siblings; shared memory and tables."""

    def work(spawner: Spawner, pids: list[int]) -> Any:
        root = spawner.executors[pids[0]]
        made = spawner.births(root, Program(), [Birth(pid) for pid in pids[1:301]])
        child = made[0]
        twin, sibling, helper = spawner.births(
            child, Program(), [Birth(pids[301], CLONE_VM | CLONE_FILES), Birth(pids[302], CLONE_PARENT), Birth(0)]
        )
        program = Program()
        at = program.call("mmap", 0, 4096, 3, 0x22, -1, 0)
        child.run(program)
        child.tracee.write(at.value, b"shared?")
        parents = [ask(one, ("getppid",))[0] for one in (twin, sibling, helper)]
        fd = ask(child, ("dup", child.fd))[0]
        return parents, pids, twin.tracee.read(at.value, 7), ask(twin, ("close", fd)), len(made)

    parents, pids, data, closed, count = spawned(303, work)
    assert parents == [pids[1], pids[0], pids[1]]
    assert (data, closed, count) == (b"shared?", [0], 300)


def test_threads(spawned: Any) -> None:
    def work(spawner: Spawner, pids: list[int]) -> Any:
        threads = spawner.threads(spawner.executors[pids[0]], pids[1:])
        return sorted(map(int, os.listdir(f"/proc/{pids[0]}/task"))), [thread.tid for thread in threads], pids

    tasks, tids, pids = spawned(50, work)
    assert (tasks, tids) == (pids, pids[1:])


@pytest.mark.parametrize("status", [0, 7 << 8, 255 << 8, 9, 15, 11, 64])
def test_ends(spawned: Any, status: int) -> None:
    """Zombies with any status, left to their parent."""

    def work(spawner: Spawner, pids: list[int]) -> Any:
        root = spawner.executors[pids[0]]
        spawner.births(root, Program(), [Birth(pids[1])])
        spawner.end(pids[1], status)
        state = Path(f"/proc/{pids[1]}/stat").read_text().rpartition(") ")[2][0]
        program = Program()
        found = program.space(4)
        program.call("wait4", pids[1], found, WALL, 0)
        root.run(program)
        return state, struct.unpack("=i", found.data)[0]

    assert spawned(2, work) == ("Z", status)


def test_executors_leave_nothing(spawned: Any) -> None:
    def work(spawner: Spawner, pids: list[int]) -> Any:
        root = spawner.executors[pids[0]]
        (child,) = spawner.births(root, Program(), [Birth(pids[1])])
        spawner.births(child, Program(), [Birth(pids[2], CLONE_VM)])
        for executor in spawner.executors.values():  # the sockets of others, inherited
            close = [(0, executor.fd - 1)] if executor.fd else []
            for first, last in [*close, (executor.fd + 1, 0xFFFFFFFF)]:
                ask(executor, ("close_range", first, last, 0))
        spawner.remove_executors()
        return [
            (f"{HOLE:x}-" in Path(f"/proc/{pid}/maps").read_text(), os.listdir(f"/proc/{pid}/fd")) for pid in pids[:2]
        ]

    found = spawned(3, work)
    assert [mapped for mapped, _ in found] == [False, False]
    assert found[0][1] == []


def test_taken(spawned: Any) -> None:
    """A PID that somebody has: said so, and all is taken back."""

    def work(spawner: Spawner, pids: list[int]) -> Any:
        spawner.births(spawner.executors[pids[0]], Program(), [Birth(pids[1]), Birth(os.getppid()), Birth(pids[2])])

    with pytest.raises(RestoreFailed, match=f"PID {os.getpid()} is taken"):
        spawned(3, work)


def test_engine_dies(spawned: Any) -> None:
    """Whatever the engine made dies with it."""

    def work(spawner: Spawner, pids: list[int]) -> Any:
        spawner.births(spawner.executors[pids[0]], Program(), [Birth(pid) for pid in pids[1:]])
        os.kill(os.getpid(), 9)

    with pytest.raises(TorporError, match="engine"):
        spawned(5, work)


def test_clone_refuses() -> None:
    """The cradle says EEXIST itself."""
    cradle = Cradle.make()
    try:
        with pytest.raises(FileExistsError):
            cradle.clone(os.getpid())
    finally:
        cradle.close()
        cradle.ours.close()
