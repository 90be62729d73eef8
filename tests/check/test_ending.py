# SPDX-License-Identifier: Apache-2.0
"""A tree whose children come and go is looked at while they end: what a task is about to lose is no obstacle."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

import torpor
from harness.events import child
from torpor import survey
from torpor.check_tree import TreeReport
from torpor.kernel.procfs import ParseError
from torpor.options import Options
from torpor.resources.context import DumpTask


@pytest.fixture
def storm() -> Iterator[int]:
    """A shell that starts one short-lived child after the other."""
    shell = subprocess.Popen(["sh", "-c", "while :; do /bin/true; done"], start_new_session=True)
    yield shell.pid
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_nothing_is_in_the_way_of_short_lived_children(storm: int) -> None:
    for _ in range(60):
        report = torpor.check(pid=storm)
        assert isinstance(report, TreeReport)
        assert report.obstacles == ()


def test_a_task_that_is_ending_is_known() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    task = survey.tree(pid)[pid]
    assert not survey.ending(task)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert survey.ending(task)
    os.waitpid(pid, 0)
    assert survey.ending(task)


def seen(pid: int) -> DumpTask:
    task = survey.tree(pid)[pid]
    survey.status(task)
    return task


def test_a_look_at_what_ends_finds_nothing() -> None:
    look = survey.Survey(Options())
    with child() as pid:
        task = seen(pid)
        with pytest.raises(ParseError), look.looking("it", task):
            raise ParseError("/proc/1/x", b"")
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with look.looking("it", task):
            raise ParseError("/proc/1/x", b"")
    assert look.refusals == []
