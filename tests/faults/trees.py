# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a tree that owns a bit of everything (tree.c), to be restored again and again: does it stand, whole?
Is nothing left of it: no process, no file, no mount, no segment?"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from faults.victim import HERE, SOURCE, Command, compiled, dump
from harness.events import children_of, tree_of

PATIENCE_S = 20.0
SEGMENT_PAGES = 3000 + os.getpid() % 1000  # nobody else is likely to make one of this size meanwhile


class Checkpoint:
    """Images in `place`/images of a tree that lived in `place`/home and has ended."""

    def __init__(self, place: Path, megabytes: int = 1, segment_pages: int = SEGMENT_PAGES) -> None:
        self.images, self.home = place / "images", place / "home"
        self.program = [compiled("tree"), str(megabytes), str(segment_pages)]
        self.pids: list[int] = []
        self.tids: list[int] = []
        self.again()

    def again(self) -> None:
        """Make it anew: with PIDs that nobody has."""
        for path in (self.images, self.home):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(mode=0o700)
        with open(self.home / "out", "wb") as out:
            process = subprocess.Popen(
                self.program, cwd=self.home, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            self._until("the tree is not ready", lambda: (self.home / "out").read_bytes() == b"ready\n")
            self.root = process.pid
            self.pids = tree_of(process.pid)
            self.tids = [int(tid) for pid in self.pids for tid in os.listdir(f"/proc/{pid}/task")]
            assert self.ask() == "ok"
            code, text = dump(process.pid, self.images)
            assert code == 0, text
        finally:
            for pid in reversed(self.pids or [process.pid]):
                _kill(pid)
            process.wait()
        self._until("the original does not end", self.is_gone)
        self.inventory = Counter(self._outside())

    def usable(self) -> None:
        """Make it anew if somebody has taken one of its PIDs."""
        if any(os.path.exists(f"/proc/{tid}") for tid in self.tids):
            self.again()

    # -- what there is ------------------------------------------------------------------------------------------------
    def is_gone(self) -> bool:
        self._reap()
        return not self.living() and not self._adopted()

    def living(self) -> list[int]:
        """Its tasks that are there: of our descendants, as we adopt orphans, or of the program's name; another process
        may have got such a PID."""
        ours = tree_of(os.getpid())
        return [pid for pid in self.pids if pid in ours or self._is_named(pid)]

    def stands(self) -> bool:
        """Every task of it is there."""
        return len(self.living()) == len(self.pids)

    def _adopted(self) -> list[int]:
        """Its tasks of which we are the parent now, also one that a look at the tree missed (proc_pid_children(5))."""
        return [pid for pid in children_of(os.getpid()) if self._is_named(pid)]

    def _is_named(self, pid: int) -> bool:
        return _name(pid) == Path(self.program[0]).name[:15]

    def _reap(self) -> None:
        for pid in {*self.pids, *self._adopted()}:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass

    def _outside(self) -> list[str]:
        """What a restore could leave behind besides processes."""
        place = str(self.home.parent)
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found = [f"mount {line}" for line in mounts if place in line]
        found += ["a segment of shared memory"] * sum(
            int(line.split()[3]) == 4096 * SEGMENT_PAGES for line in _segments()
        )
        for top, names, files in os.walk(place):
            found += [f"file {os.path.join(top, name)}" for name in (*names, *files) if name != "stats-restore"]
        return sorted(found)

    def left(self) -> list[str]:
        """What is there besides processes, that was not before a restore, and what is missing."""
        now = Counter(self._outside())
        return [f"new: {one}" for one in now - self.inventory] + [f"missing: {one}" for one in self.inventory - now]

    def ask(self) -> str:
        """What the tree says of itself."""
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(PATIENCE_S)
            directory = os.open(self.home, os.O_PATH)
            try:
                door.connect(f"/proc/self/fd/{directory}/door")
                return door.recv(1000).decode().strip()
            except OSError as error:
                return f"no answer: {error}"
            finally:
                os.close(directory)

    # -- restores -----------------------------------------------------------------------------------------------------
    def command(self, *options: str) -> Command:
        """Begin a restore."""
        self.usable()
        return Command(*self.arguments(*options))

    def arguments(self, *options: str) -> list[str]:
        return ["restore", "-d", "-D", str(self.images), *options]

    def meddled(self, step: int, deeds: str) -> tuple[int, str]:
        """A restore at whose `step`th step something happens (meddling.py): its status and words."""
        self.usable()
        command = [sys.executable, str(HERE / "meddling.py"), str(step), deeds, *self.arguments()]
        environment = dict(os.environ, PYTHONPATH=str(SOURCE), PYTHONDONTWRITEBYTECODE="1")
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def outcome(self) -> str:
        """After a restore that was meddled with: "nothing" is left, "all" of it runs; else what is wrong."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = "torpor is there still"
            if not self._torpor():
                if self.is_gone():
                    return "nothing"
                answer = self.ask() if self.stands() else f"{len(self.living())} of {len(self.pids)} tasks are left"
                if answer == "ok":
                    return "all"
            if time.monotonic() > deadline:
                return answer
            time.sleep(0.002)

    def _torpor(self) -> bool:
        """Whether a process of this restore's is left: with its command line, as the engine has it too."""
        for pid in tree_of(os.getpid()):
            try:
                if os.fsencode(self.images) in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != os.getpid():
                    return True
            except OSError:
                pass
        return False

    def end(self) -> None:
        """End what runs of it."""
        for pid in reversed(self.pids):
            _kill(pid)
        self._until("the tree does not end", self.is_gone)

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.002)


def count(checkpoint: Checkpoint, deeds: str = "") -> int:
    """How many steps a restore has: a few more or less from time to time."""
    code, text = checkpoint.meddled(0, deeds)
    assert code == 0 and checkpoint.outcome() == "all", text
    checkpoint.end()
    return int(text.split("steps ")[1].split()[0])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _segments() -> list[str]:
    try:
        return Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    except OSError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
