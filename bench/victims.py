# SPDX-License-Identifier: Apache-2.0
"""The victim processes: built, started, read, ended, and nothing left behind.

The benchmark makes itself the subreaper of all that it starts, because what `restore -d` leaves behind would else go to
init, and a zombie that init is slow to collect keeps a PID that the next restore needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import time
from pathlib import Path

from bench.cases import Case

BOARD_ADDRESS = 0x2000_0000_0000  # victim.c, struct board
BOARD = struct.Struct("QQQ")
PR_SET_CHILD_SUBREAPER = 36


class BenchError(Exception):
    """The benchmark cannot go on; the message is for people."""


def become_subreaper() -> None:
    """prctl(2): orphaned descendants become our children."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def build(directory: Path) -> Path:
    """Compile victim.c into the directory."""
    program = directory / "victim"
    source = Path(__file__).with_name("victim.c")
    command = ["cc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(program), str(source)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise BenchError("no C compiler: install one (Debian: apt-get install gcc libc6-dev)") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"victim.c does not compile: {' '.join(command)} ended with {error.returncode}") from None
    return program


class Victim:
    """One victim tree, known by the PID of its root; the PIDs are the same after a restore."""

    def __init__(self, program: Path, case: Case, directory: Path) -> None:
        files = directory / "files"
        files.mkdir()
        self.process = subprocess.Popen(
            [str(program), "run", case.kind, str(case.number), str(files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=directory,
            start_new_session=True,
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        with self.process.stdout as out:
            if out.readline() != b"ready\n":
                self.process.wait()
                raise BenchError(f"the victim of the case {case.name!r} did not start")
        self.pids = tree(self.pid)

    def board(self) -> tuple[int, int, int]:
        """(longest gap in ns, beats, bad words)"""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(BOARD_ADDRESS)
            words = BOARD.unpack(memory.read(BOARD.size))
        return words[0], words[1], words[2]

    def forget_gaps(self) -> None:
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(BOARD_ADDRESS)
            memory.write(struct.pack("Q", 0))

    def undisturbed(self) -> float:
        """The longest gap in half a second in which no tool is at work, in seconds: what the machine does by itself."""
        self.forget_gaps()
        time.sleep(0.5)
        return self.board()[0] / 1e9

    def check(self, what: str) -> int:
        """See that the victim is running with its memory as it was; returns the longest gap in ns."""
        beats = self.board()[1]
        deadline = time.monotonic() + 5
        while self.board()[1] - beats < 10_000:
            if time.monotonic() > deadline:
                raise BenchError(f"{what}: the victim {self.pid} does not go on")
            time.sleep(0.002)
        gap, _, bad = self.board()
        if bad:
            raise BenchError(f"{what}: the victim {self.pid} found {bad} wrong words in its memory")
        missing = self.pids - tree(self.pid)
        if missing:
            raise BenchError(f"{what}: {len(missing)} processes of the tree are missing, {min(missing)} among them")
        return gap

    def end(self) -> None:
        """End the whole tree, wait for every PID of it to be free."""
        pids = (self.pids | tree(self.pid)) if alive(self.pid) else self.pids
        for pid in pids:
            try:
                if os.getpgid(pid) == self.pid:  # else the PID is somebody else's by now
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + 10
        while any(alive(pid) for pid in pids):
            reap(pids)
            if time.monotonic() > deadline:
                raise BenchError(f"the victim {self.pid} could not be ended")
            time.sleep(0.002)
        self.process.returncode = -signal.SIGKILL  # reaped above, behind subprocess's back


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def reap(pids: set[int]) -> None:
    """Collect those of the PIDs that are ours and have ended."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass


def children(pid: int) -> list[int]:
    """Every child of every thread of a process, read from /proc."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # it ended while we looked
    return found


def tree(pid: int) -> set[int]:
    """A process with all its descendants."""
    found = {pid}
    todo = [pid]
    while todo:
        for child in children(todo.pop()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found
