# SPDX-License-Identifier: Apache-2.0
"""What every test of a real program needs: find it, start it, ports, checkpoints, and words about what went wrong.

The programs run as they would on a host: in a session of their own, with their output in a file. They are dumped while
they work, ended, restored, and then looked at from outside: what they serve and what they answer. Which tool dumps and
which restores is a parameter; `TORPOR_PROGRAM_TOOLS=criu-criu` runs the tests on CRIU alone, which tests the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from harness import procview
from harness.events import Timeout, children_of, pid_exists, status_in_words, tree_of, wait_end
from harness.failures import ToolFailed
from harness.modes import LEFT_BY, LOST_IN_IMAGES_OF
from harness.tools import Tool

PATIENCE = 30.0
# dash waits for its children in sigsuspend, which has a signal mask of its own: a stop may show either.
SIGSUSPEND = procview.Tolerance("in sigsuspend", pattern=r"\(sh\), .*status SigBlk")
# Stopping a child tells its parent, which finds out when it goes on.
TOLD_OF_THE_STOP = procview.Tolerance("SIGCHLD", pattern=r"status ShdPnd: was '0{11}[01]0000', is '0{11}[01]0000'")
# Or it stands at the beginning of its handler for that already; php-fpm's blocks all signals meanwhile.
IN_ITS_HANDLER = procview.Tolerance(
    "in the handler of SIGCHLD",
    pattern=r"\(php-fpm.*status SigBlk: was '(0{16}|f{7}e7ffbbeff)', is '(0{16}|f{7}e7ffbbeff)'",
)
# What is lost where CRIU 4.2.1 has a part in it: facts of that tool, found by running it on these programs.
CRIU_LOSES = [
    procview.Tolerance("not in the images", pattern="coredump_filter: was"),
    procview.Tolerance("made as root", pattern=r"fd \d+, owner: was '\d+:\d+', is '0:0'"),
]
VICTIMS = Path(__file__).resolve().parent / "victims"
T = TypeVar("T")


def program(name: str, package: str, *places: str) -> str:
    """The path of a program; the test is skipped where its Debian package is missing."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places, "/usr/sbin", "/sbin"]))
    if path is None:
        pytest.skip(f"not installed: apt-get install {package}")
    return path


def free_port() -> int:
    """A TCP port that nobody has now. Programs that listen ask for SO_REUSEADDR, so it stays usable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], T], patience: float = PATIENCE) -> T:
    """Ask until the answer is true, or until asking works at all."""
    deadline = time.monotonic() + patience
    trouble: Exception | None = None
    while True:
        try:
            if answer := condition():
                return answer
        except OSError as error:
            trouble = error
        if time.monotonic() > deadline:
            raise Timeout(f"{what}: not after {patience:g} s" + (f" ({trouble})" if trouble else ""))
        time.sleep(0.01)


def compiled(name: str, directory: Path) -> str:
    """A program of tests/programs/victims, compiled."""
    target = directory / name
    compiler = program("gcc", "gcc")
    command = [
        compiler,
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        "-o",
        str(target),
        str(VICTIMS / f"{name}.c"),
    ]
    subprocess.run(command, check=True)
    return str(target)


def ask(port: int, line: str) -> str:
    """One line to a server, and its answer, over a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(line.encode() + b"\n")
        return connection.makefile().readline().strip()


class Asker(threading.Thread):
    """A client that asks all the time, and opens a new connection when the old one breaks."""

    def __init__(self, port: int, line: str, good: str) -> None:
        super().__init__(daemon=True)
        self.port, self.line, self.good = port, line, good
        self.answers = 0
        self.connections = 0
        self.wrong: list[str] = []
        self._over = False

    def run(self) -> None:
        while not self._over:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
                    self.connections += 1
                    answers = connection.makefile()
                    while not self._over:
                        connection.sendall(self.line.encode() + b"\n")
                        answer = answers.readline()
                        if not answer:
                            break
                        if answer.startswith(self.good):
                            self.answers += 1
                        else:
                            self.wrong.append(answer)
                        time.sleep(0.005)
            except OSError:
                time.sleep(0.01)

    def wait_for(self, number: int) -> None:
        goal = self.answers + number
        wait_for(f"{number} good answers (wrong ones: {self.wrong[:1]})", lambda: self.answers >= goal)

    def stop(self) -> None:
        self._over = True
        self.join(PATIENCE)


class Service:
    """A program that was started: the same PID before the dump and after the restore."""

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        *,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
        typed: bool = False,
    ) -> None:
        """typed: standard input is a FIFO, into which `type` writes; else it is /dev/null."""
        self.out = directory / "out"
        self._keys, stdin = -1, os.open(os.devnull, os.O_RDONLY)
        if typed:
            os.close(stdin)
            os.mkfifo(directory / "in")
            self._keys = os.open(directory / "in", os.O_RDWR)  # both ends: it never ends, whoever is there
            stdin = os.open(directory / "in", os.O_RDONLY)
        # One description for both: they are one file to the program. Appending: what restores must not overwrite.
        with open(self.out, "ab") as out:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=out,
                stderr=out,
                cwd=directory,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **(environment or {})},
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        os.close(stdin)
        self.pid = process.pid
        process.returncode = 0  # subprocess is to forget it: after a restore it is another process with this PID

    def type(self, text: str) -> None:
        os.write(self._keys, text.encode())

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def wait_said(self, text: str, patience: float = PATIENCE) -> None:
        try:
            wait_for(f"output {text!r}", lambda: text in self.said() or self.ended(), patience)
        except Timeout as error:
            raise Timeout(f"{error}; it said: {self.said()[-1000:]}") from None
        assert text in self.said(), f"it ended early and said: {self.said()[-2000:]}"

    def end(self, number: int = signal.SIGTERM, status: int | None = 0, patience: float = PATIENCE) -> None:
        """Ask it to end and see that it does so in good order. status: its exit status, None for any."""
        os.kill(self.pid, number)
        ended = wait_end(self.pid, patience)
        if status is not None and ended != status << 8:
            raise AssertionError(f"ended with {status_in_words(ended)} and said: {self.said()[-2000:]}")


class Checkpoint:
    """The two tools and one directory for the images."""

    def __init__(self, tools: tuple[Tool, Tool], compared: bool, directory: Path, at_end: ExitStack) -> None:
        self.dumper, self.restorer = tools
        self.compared = compared  # with --leave-stopped, /proc of the tree before and after
        self.directory = directory
        self.at_end = at_end  # what the test must stop, also when it fails
        self.images = directory / "images"
        self.tasks: set[int] = set()

    def dump(self, pid: int, *options: str) -> None:
        """Dump the tree; the tool must have ended all of it."""
        # A tree that forks has others by the time of the dump, but most are these, and a restore needs them free.
        self.tasks = threads_of(pid)
        if self.compared:
            self.dumper.dump(pid, self.images, "--leave-stopped", *options)
            wait_for("all to be stopped", lambda: all(state(one) in "TZ" for one in tree_of(pid)), 10)
            self.before = procview.view(pid)
            self.pid = pid
            self.tasks = threads_of(pid)
            for one in tree_of(pid):
                os.kill(one, signal.SIGKILL)
        else:
            self.dumper.dump(pid, self.images, *options)
        ended = wait_end(pid, 10)
        assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL, (
            f"the original did not end by SIGKILL: {status_in_words(ended)}"
        )
        self.tasks_are_gone()

    def tasks_are_gone(self) -> None:
        def gone() -> bool:
            reap()
            return not any(pid_exists(task) for task in self.tasks)

        wait_for("the original's PIDs to be free", gone, 10)

    def refused(self, pid: int, *options: str) -> str:
        """Dump, which must fail without harm; returns the words."""
        images = self.directory / "refused"
        with pytest.raises(ToolFailed) as failure:
            self.dumper.dump(pid, images, *options)
        assert pid_exists(pid), "the refused dump ended the program"
        error = failure.value
        if self.dumper.name != "torpor":
            return str(error)  # somewhere in the log
        assert "Traceback" not in str(error), str(error)
        return error.line

    def restore(self, *options: str) -> None:
        if not self.compared:
            self.restorer.restore(self.images, *options)
            return
        self.restorer.restore(self.images, "--leave-stopped", *options)
        after = procview.view(self.pid)
        for one in reversed(tree_of(self.pid)):  # children first: who goes on may collect them
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)
        tolerances = [SIGSUSPEND, TOLD_OF_THE_STOP, IN_ITS_HANDLER]
        tolerances += [*LEFT_BY[self.restorer.name], *LOST_IN_IMAGES_OF[self.dumper.name]]
        if "criu" in (self.dumper.name, self.restorer.name):
            tolerances += CRIU_LOSES
        found = procview.differences(self.before, after, tolerances)
        text = "\n".join(found[:40]) + (f"\n… and {len(found) - 40} more" if len(found) > 40 else "")
        assert not found, f"/proc shows {len(found)} differences after the restore:\n{text}"


def reap() -> None:
    """Collect what has ended among the orphans that the test process has inherited, as init would.

    A short-lived child of the tree may have ended with it, unknown to us, and a zombie keeps not only its own PID but
    also the number of its process group. (subprocess does not mind when its children are collected by others.)
    """
    for pid in children_of(os.getpid()):
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"  # it has ended


def threads_of(pid: int) -> set[int]:
    """PIDs and TIDs of a whole tree."""
    found: set[int] = set()
    for process in tree_of(pid):
        try:
            found.update(map(int, os.listdir(f"/proc/{process}/task")))
        except OSError:
            pass  # it has ended
    return found
