# SPDX-License-Identifier: Apache-2.0
"""Which PIDs are in use, by whom, and that what has ended gets a moment to go."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from torpor.resources import pids


@contextmanager
def child(body: Callable[[], object] = signal.pause) -> Iterator[int]:
    """A child; `body` is what it does until it is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def words(pid: int) -> str:
    (error,) = pids.taken([pid])
    assert error.code == "pid-taken"
    return str(error)


def test_a_running_process_is_named_at_once() -> None:
    with child() as pid:
        start = time.monotonic()
        text = words(pid)
        assert time.monotonic() - start < pids.PATIENCE / 2
    assert f"PID {pid} is taken (" in text
    assert "end that process, or restore in a PID namespace of its own (unshare -fp --mount-proc torpor restore" in text
    assert "without -d" in text  # which is refused there
    assert list(pids.taken([pid])) == []


def test_what_has_ended_gets_a_moment() -> None:
    with child(lambda: os._exit(0)) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        reaper = threading.Timer(0.05, os.waitpid, (pid, 0))
        reaper.start()
        assert list(pids.taken([pid])) == []
        reaper.join()


def test_whose_zombie_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pids, "PATIENCE", 0.05)
    with child(lambda: os._exit(0)) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert f"its parent {os.getpid()} (" in words(pid)


@pytest.mark.parametrize("what", ["group", "session"])
def test_without_its_leader(what: str) -> None:
    """A member keeps the number of its group, or that of its session where it has a group of its own, as the job of a
    shell has that is gone."""
    told, tell = os.pipe()

    def lead() -> None:
        (os.setsid if what == "session" else os.setpgrp)()
        member = os.fork()
        if member == 0:
            if what == "session":
                os.setpgrp()
            os.write(tell, b"%d" % os.getpid())
            signal.pause()
        os.read(wait, 1)

    wait, go = os.pipe()
    with child(lead) as pid:
        member = int(os.read(told, 20))
        os.write(go, b"g")
        os.waitpid(pid, 0)
        try:
            text = words(pid)
            assert f"the process group or session of {member} (" in text
            assert "end them" in text
        finally:
            os.kill(member, signal.SIGKILL)
    for fd in (told, tell, wait, go):
        os.close(fd)
