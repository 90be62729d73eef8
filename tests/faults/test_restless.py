# SPDX-License-Identifier: Apache-2.0
"""Programs that change while they are being stopped, or let go: they are stopped as a whole, and nobody waits for ever.

Each test does its work in a process of its own, which is killed if it hangs.
"""

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from faults.victim import compiled
from torpor.engine import freeze as module
from torpor.engine.freeze import FrozenTree, freeze
from torpor.engine.tracee import Tracee
from torpor.kernel import ptrace
from torpor.kernel.proc import parse_stat
from torpor.kernel.procfs import read_all

PATIENCE_S = 30
ROUNDS = 20

if os.geteuid():
    pytest.skip("freezing needs root", allow_module_level=True)


@contextmanager
def restless(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([compiled("restless"), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    if len(words) == 1:
        assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        for pid in (*children(process.pid), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(tid: int) -> str:
    """Empty: it is gone."""
    try:
        return parse_stat(read_all(f"/proc/{tid}/stat")).state
    except OSError:
        return ""


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S / 3
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def set_off(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def in_time(work: Callable[[], None]) -> None:
    """Do it in a process of its own."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    deadline = time.monotonic() + PATIENCE_S
    status = None
    while status is None and time.monotonic() < deadline:
        ended, what = os.waitpid(pid, os.WNOHANG)
        status = what if ended else None
        time.sleep(0.01)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert status == 0, "it hangs" if status is None else "it failed"


def let_go(tree: FrozenTree) -> None:
    for process in tree.processes.values():
        for thread in reversed(process.threads.values()):
            thread.let_go()


def test_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child ends after it was seen, and before it was stopped: its own child belongs to its stopped parent then."""
    with restless("adopts") as process:
        asked: list[int] = []
        look = module._children

        def look_too_early(pid: int, tid: int) -> list[int]:
            found = look(pid, tid)
            if pid == process.pid and not asked:
                asked.extend(found)
                set_off(process)
                until(lambda: state(asked[0]) == "Z")
            return found

        monkeypatch.setattr(module, "_children", look_too_early)
        monkeypatch.setattr(module, "_tree", lambda root: [root])

        def work() -> None:
            tree = freeze(process.pid)
            (late,) = set(children(process.pid)) - {asked[0]}
            assert list(tree.processes) == [process.pid, asked[0], late]
            assert tree.processes[asked[0]].zombie and not tree.processes[late].zombie
            assert state(late) == "t"
            let_go(tree)

        in_time(work)


@pytest.mark.parametrize("seized", [1, 2, 3, 4])
def test_another_program_while_it_is_seized(seized: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that is seized last becomes another program when so many have been seized.  It waits for their ends,
    and PTRACE_SEIZE waits for it."""
    with restless("execs") as process:
        tids = sorted(map(int, os.listdir(f"/proc/{process.pid}/task")))
        seizing = ptrace.seize
        done: list[int] = []

        def seize(tid: int, options: int) -> None:
            if len(done) == seized and tid in tids:
                set_off(process)
                until(lambda: state(tids[-1]) in ("D", ""))
            done.append(tid)
            seizing(tid, options)

        monkeypatch.setattr(ptrace, "seize", seize)

        def work() -> None:
            started = time.monotonic()
            tree = freeze(process.pid)
            assert time.monotonic() - started < 1
            assert all(state(tid) == "t" for tid in tree.processes[process.pid].threads)
            let_go(tree)

        in_time(work)
        assert process.stdout and process.stdout.readline() == "ready\n"


def test_another_program_when_its_leader_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that was not seen yet becomes the leader: it is stopped, and it is the first."""
    with restless("execs") as process:
        tids = sorted(map(int, os.listdir(f"/proc/{process.pid}/task")))
        listing, awaiting, done = module._tids, module._await_stop, []

        def list_some(pid: int) -> list[int]:
            return [tid for tid in listing(pid) if tid != tids[-1]]

        def await_stop(thread: Tracee, *more: Any) -> bool:
            stopped = awaiting(thread, *more)
            if thread.tid == process.pid and not done:
                done.append(thread)
                set_off(process)
                until(lambda: state(tids[-1]) == "D")
            return stopped

        monkeypatch.setattr(module, "_tids", list_some)
        monkeypatch.setattr(module, "_await_stop", await_stop)

        def work() -> None:
            tree = freeze(process.pid)
            first, *_ = threads = tree.processes[process.pid].threads
            assert first == process.pid
            assert all(state(tid) == "t" for tid in threads)
            let_go(tree)

        in_time(work)
        assert process.stdout and process.stdout.readline() == "ready\n"


def test_another_program_all_the_time() -> None:
    with restless("execs", "often") as process:

        def work() -> None:
            for _ in range(ROUNDS):
                tree = freeze(process.pid)
                threads = tree.processes[process.pid].threads
                assert next(iter(threads)) == process.pid
                assert sorted(threads) == sorted(map(int, os.listdir(f"/proc/{process.pid}/task")))
                for thread in threads.values():
                    assert thread.general
                for thread in threads.values():
                    with suppress(ProcessLookupError):  # the one that calls execve(2) was let go before this one
                        ptrace.detach(thread.tid)
                time.sleep(0.002)

        in_time(work)


def test_another_program_as_soon_as_it_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from torpor.engine.thaw import thaw

    with restless("execs") as process:
        detaching = ptrace.detach

        def detach(tid: int, signal: int = 0) -> None:
            detaching(tid, signal)
            if tid == tids[-1]:
                set_off(process)
                until(lambda: state(tid) == "D")

        tids = sorted(map(int, os.listdir(f"/proc/{process.pid}/task")))
        monkeypatch.setattr(ptrace, "detach", detach)

        def work() -> None:
            thaw(freeze(process.pid).processes[process.pid].threads.values())
            until(lambda: not state(tids[-1]))

        in_time(work)
        assert process.stdout and process.stdout.readline() == "ready\n"
