# SPDX-License-Identifier: Apache-2.0
"""The comparison of two views of a tree: it must see every single change, and none where nothing changed.

A child changes one thing about itself; the views before and after must differ in exactly the sentence that says so.
"""

import ctypes
import fcntl
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import procview
from harness.events import Nursery

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NAME, PR_SET_TIMERSLACK, PR_SET_NO_NEW_PRIVS, PR_SET_THP_DISABLE, PR_CAPBSET_DROP = 15, 29, 38, 41, 24


class Victim:
    """A child that does what it is told to, one step at a time."""

    def __init__(self) -> None:
        self.area = mmap.mmap(-1, 16 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        for page in (0, 15):  # so that what is between never merges with a neighbour
            libc.mprotect(ctypes.c_void_p(self.address + page * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 0)
        self.file = os.open(__file__, os.O_RDONLY)
        self.null = os.open("/dev/null", os.O_RDWR)
        self.again = os.dup(self.null)
        self.pipes = os.pipe(), os.pipe()
        self.pair = socket.socketpair()

    def forever(self, step: Callable[["Victim"], object], orders: int, answers: int) -> None:
        try:
            os.write(answers, b"x")
            os.read(orders, 1)
            step(self)
            os.write(answers, b"x")
            os.read(orders, 1)
        finally:
            os._exit(0)


def prctl(*arguments: int | bytes) -> None:
    if libc.prctl(*arguments, *[0] * (5 - len(arguments))):
        raise OSError(ctypes.get_errno(), "prctl")


def advise(advice: int) -> Callable[[Victim], None]:
    return lambda v: v.area.madvise(advice, mmap.PAGESIZE, 14 * mmap.PAGESIZE)


def protect(protection: int, page: int) -> Callable[[Victim], None]:
    def step(v: Victim) -> None:
        libc.mprotect(ctypes.c_void_p(v.address + page * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), protection)

    return step


def replace(v: Victim, fd: int, other: int) -> None:
    """Another description under the same number."""
    os.dup2(other, fd)
    os.close(other)


def another_pipe(v: Victim) -> None:
    reader, writer = os.pipe()
    replace(v, v.pipes[0][0], reader)
    os.close(writer)


def pending(v: Victim) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)


STEPS: dict[str, tuple[Callable[[Victim], object], list[str]]] = {
    "nothing": (lambda v: None, []),
    "madvise DONTFORK": (advise(mmap.MADV_DONTFORK), [r"area .*VmFlags: gained dc$"]),
    "madvise DONTDUMP": (advise(16), [r"area .*VmFlags: gained dd$"]),
    "one page read-only": (protect(1, 3), ["area .* is gone$"] + ["area .* is new"] * 3),
    "close-on-exec": (lambda v: os.set_inheritable(v.null, True), [r"fd \d+, close-on-exec: was True, is False$"]),
    "close-on-exec on": (lambda v: os.set_inheritable(0, False), [r"fd 0, close-on-exec: was False, is True$"]),
    "file flags": (
        lambda v: fcntl.fcntl(v.pipes[0][0], fcntl.F_SETFL, os.O_NONBLOCK),
        [r"fd \d+, flags: was '0o0', is '0o4000'$"],
    ),
    "position": (lambda v: os.lseek(v.file, 77, 0), [r"fd \d+, pos: was '0', is '77'$"]),
    "another description": (
        lambda v: replace(v, v.again, os.open("/dev/null", os.O_RDWR)),
        [r"fd \d+, close-on-exec: was True, is False$", r"no longer the same description"],
    ),
    "another pipe": (another_pipe, [r"close-on-exec: was", r"no longer the same inode"]),
    "a descriptor lost": (lambda v: os.close(v.again), [r"fd \d+, link: was '/dev/null', is gone$"]),
    "a descriptor more": (lambda v: os.open("/", os.O_RDONLY), [r"fd \d+, link: is new: '/'$"]),
    "signal mask": (
        lambda v: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
        [r"thread \d+, status SigBlk: was '0{16}', is '0{13}200'$"],
    ),
    "signal ignored": (lambda v: signal.signal(signal.SIGUSR2, signal.SIG_IGN), [r"status SigIgn: was"]),
    "signal pending": (pending, [r"status ShdPnd: was '0{16}', is '0{13}200'$", r"status SigBlk"]),
    "limit": (
        lambda v: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        [r"limit Max core file size: was '0 unlimited', is '0 0'$"],
    ),
    "umask": (lambda v: os.umask(0o111), [r"status Umask: was '0022', is '0111'$"]),
    "working directory": (lambda v: os.chdir("/proc"), [r"cwd: was '.*', is '/proc'$"]),
    "nice": (lambda v: os.nice(3), [r"priority: was 20, is 23$", r"nice: was 0, is 3$", r"sched_attr: was"]),
    "scheduling class": (
        lambda v: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        [r"policy: was 0, is 3$", r"sched_attr"],
    ),
    "name": (lambda v: prctl(PR_SET_NAME, b"other"), [r"status Name", r"thread \d+, comm: was", r"comm: was"]),
    "timer slack": (lambda v: prctl(PR_SET_TIMERSLACK, 12345), [r"timerslack_ns: was '50000', is '12345'$"]),
    "no_new_privs": (lambda v: prctl(PR_SET_NO_NEW_PRIVS, 1), [r"status NoNewPrivs: was '0', is '1'$"]),
    "bounding set": (lambda v: prctl(PR_CAPBSET_DROP, 16), [r"status CapBnd: was"]),
    "huge pages": (lambda v: prctl(PR_SET_THP_DISABLE, 1), [r"status THP_enabled: was '1', is '0'$"]),
    "process group": (lambda v: os.setpgid(0, 0), [r"NSpgid: was", r"pgrp: was"]),
    "oom_score_adj": (
        lambda v: Path("/proc/self/oom_score_adj").write_text("321"),
        [r"oom_score_adj: was '0', is '321'$"],
    ),
    "coredump filter": (
        lambda v: Path("/proc/self/coredump_filter").write_text("0x7"),
        [r"coredump_filter: was '00000033', is '00000007'$"],
    ),
    "personality": (lambda v: libc.personality(0x40000), [r"personality: was '00000000', is '00040000'$"]),
    "an area lost": (lambda v: libc.munmap(ctypes.c_void_p(v.address), 4096), [r"area .* is gone$"]),
    "memory locked": (
        lambda v: libc.mlock(ctypes.c_void_p(v.address + 4096), 14 * 4096),
        [r"status VmLck: was '0 kB', is '56 kB'$", r"VmFlags: gained lo$"],
    ),
}


@pytest.fixture
def watched(request: pytest.FixtureRequest) -> Iterator[tuple[procview.View, procview.View]]:
    """The views before and after a step."""
    step = STEPS[request.param][0]
    with Nursery() as nursery:
        orders, to_child = os.pipe()
        from_child, answers = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.umask(0o022)
                signal.signal(signal.SIGUSR2, signal.SIG_DFL)
                os.close(to_child)
                os.close(from_child)
                Victim().forever(step, orders, answers)
            finally:
                os._exit(1)
        os.close(orders)
        os.close(answers)
        assert os.read(from_child, 1) == b"x"
        before = procview.view(pid)
        os.write(to_child, b"x")
        assert os.read(from_child, 1) == b"x"
        yield before, procview.view(pid)
        os.close(to_child)
        os.close(from_child)
        nursery.reap_orphans()


@pytest.mark.parametrize(("watched", "name"), [(name, name) for name in STEPS], indirect=["watched"], ids=list(STEPS))
def test_every_change_is_told(watched: tuple[procview.View, procview.View], name: str) -> None:
    found = procview.differences(*watched)
    # A step in Python may need memory of its own: the heap may grow, and the sums with it.
    found = [line for line in found if not re.search(r"\[heap\]|status Vm(Size|Data)|vsize", line)]
    wanted = STEPS[name][1]
    assert len(found) == len(wanted), found
    for line, pattern in zip(found, wanted, strict=True):
        assert re.search(pattern, line)


def test_renaming_is_consistent() -> None:
    """Given two descriptors on one pipe, when restored as two pipes (or two as one), then that is a difference."""
    one: procview.View = {("t", "fd 3"): procview.Same("inode", 1), ("t", "fd 4"): procview.Same("inode", 1)}
    two: procview.View = {("t", "fd 3"): procview.Same("inode", 7), ("t", "fd 4"): procview.Same("inode", 8)}
    renamed: procview.View = {("t", "fd 3"): procview.Same("inode", 9), ("t", "fd 4"): procview.Same("inode", 9)}
    assert procview.differences(one, renamed) == []
    assert len(procview.differences(one, two)) == 1
    assert len(procview.differences(two, one)) == 1


def test_tolerances_hide_only_what_they_name() -> None:
    before: procview.View = {("task 1", "umask"): "0022", ("task 1", "nice"): 0}
    after: procview.View = {("task 1", "umask"): "0", ("task 1", "nice"): 1}
    assert procview.differences(before, after, [procview.Tolerance("", r", umask: was")]) == [
        "task 1, nice: was 0, is 1"
    ]


def test_a_task_that_ends_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the list of its threads and a look at the first of them: it is left out, and the others are there."""
    child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    look = procview.Viewer.thread

    def ending(viewer: procview.Viewer, task: str, pid: int, tid: int) -> str:
        if pid == child.pid:
            child.kill()
            child.wait()
        return look(viewer, task, pid, tid)

    monkeypatch.setattr(procview.Viewer, "thread", ending)
    try:
        seen = procview.view(os.getpid())
    finally:
        child.kill()
        child.wait()
    assert (f"task {child.pid}", "threads") not in seen
    assert (f"task {os.getpid()}", "areas") in seen
