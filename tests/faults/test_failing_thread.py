# SPDX-License-Identifier: Apache-2.0
"""A system call fails that a dump makes inside a thread: the dump fails, and nothing is left in the victim."""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import torpor
from faults.victim import Victim
from torpor.engine.program import Argument, Program, Result
from torpor.engine.team import Answers, ThreadTeam
from torpor.engine.tracee import Tracee
from torpor.errors import TorporError


def failing_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ThreadTeam.ask

    def fail(self: ThreadTeam, threads: Iterable[Tracee], program: Program) -> Answers:
        program.call("close", -1)
        return ask(self, threads, program)

    monkeypatch.setattr(ThreadTeam, "ask", fail)


def failing_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine stumbles while threads run their programs."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "stumbled")

    monkeypatch.setattr("torpor.engine.team.wait_readable", fail)


def failing_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The team's memory is mapped, and its socket cannot be made."""
    call = Program.call

    def fail(self: Program, name: str, *args: Argument, may_fail: bool = False) -> Result:
        if name == "socketpair" and len(self):
            args = (-1, *args[1:])
        return call(self, name, *args, may_fail=may_fail)

    monkeypatch.setattr(Program, "call", fail)


@pytest.mark.parametrize("what", [failing_threads, failing_engine, failing_socket])
def test_nothing_is_left(
    what: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        pytest.skip("freezing needs root")
    with Victim.of(1) as victim:
        what(monkeypatch)
        with pytest.raises(TorporError, match="failed"):
            torpor.dump(victim.pid, tmp_path, leave_running=True)
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []
        assert victim.harm("signals") == []
