# SPDX-License-Identifier: Apache-2.0
"""The victim of the tests in here (victim.c), and what must not change in it: its vitals."""

import hashlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from harness.differences import View, differences
from harness.events import children_of, describe, tree_of
from harness.procview import view

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "src"
SETTLE_S = 20.0  # for a task to go home whose engine was killed
ANSWER_S = 30.0


def compiled(name: str) -> Path:
    """A program of this directory, from the cache if this very source was compiled before."""
    path = HERE / f"{name}.c"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"torpor-faults-{os.getuid()}"
    cache.mkdir(mode=0o755, exist_ok=True)
    program = cache / f"{name}-{digest}"
    if not program.exists():
        unfinished = f"{program}.{os.getpid()}"
        flags = ["-O1", "-pthread", "-Wall", "-Wextra", "-Werror"]
        done = subprocess.run(["gcc", *flags, "-o", unfinished, str(path)], capture_output=True, text=True)
        assert not done.returncode, done.stderr
        os.rename(unfinished, program)
    return program


def status(pid: int, name: str) -> str:
    """A line of /proc/PID/status; "" where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(f"{name}:")), "")


def tracer(pid: int) -> int:
    """Who traces it; 0: nobody."""
    return int(status(pid, "TracerPid") or 0)


def vitals(pid: int) -> View:
    """Masks, handlers, descriptors, areas, children, tracers, states: all that /proc shows of a tree, but not which of
    its timers has just fired."""
    seen = view(pid)
    return {
        key: value
        for key, value in seen.items()
        if not key[-1].startswith("timer ") and key[-1] not in ("status SigPnd", "status ShdPnd")
    } | {(f"task {one}", "pending"): _pending(one) for one in tree_of(pid)}


def _pending(pid: int) -> str:
    """Pending signals of all threads but those that come and go: from timers, and from children that the guardian
    stops and continues."""
    ticking = sum(1 << number - 1 for number in (signal.SIGALRM, signal.SIGRTMIN + 2, signal.SIGCHLD))
    words = []
    for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task"))):
        for name in ("SigPnd", "ShdPnd"):
            words.append(f"{int(status(tid, name) or '0', 16) & ~ticking:x}")
    return " ".join(words)


def _settled(pid: int) -> View:
    """The vitals, once they stay the same: not those of a thread that is in a signal handler just now."""
    now = vitals(pid)
    for _ in range(100):
        time.sleep(0.01)
        before, now = now, vitals(pid)
        if not differences(before, now):
            break
    return now


class Victim:
    """A running program, its standard input and output ours, in a session of its own."""

    def __init__(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        setup: Callable[[], object] | None = None,
        compare: bool = True,
    ) -> None:
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=setup,
        )
        assert self.process.stdin and self.process.stdout
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._data = b""
        first = self.line()
        if first != "ready":
            self.end()
            raise AssertionError(f"the victim said {first!r} instead of ready")
        self.ask("check")  # all threads have begun to sleep
        self.before = _settled(self.pid) if compare else {}

    @classmethod
    def of(cls, megabytes: int, setup: Callable[[], object] | None = None) -> "Victim":
        return cls(compiled("victim"), str(megabytes), setup=setup)

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> "Victim":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.end()

    def line(self, patience: float = ANSWER_S) -> str:
        deadline = time.monotonic() + patience
        while b"\n" not in self._data:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return f"(no answer in {patience:g} s: {describe(self.pid)})"
            chunk = os.read(self._out, 4096)
            if not chunk:
                return f"(ended: {self.process.wait()})"
            self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        return line.decode()

    def ask(self, command: str) -> str:
        try:
            os.write(self._in, command.encode() + b"\n")
        except BrokenPipeError:
            pass
        return self.line()

    def changes(self, patience: float = SETTLE_S, before: View | None = None) -> list[str]:
        """What is not as it was; [] as soon as all is.  There is no event for "it has come home": /proc is asked."""
        deadline = time.monotonic() + patience
        while True:
            try:
                found = differences(self.before if before is None else before, vitals(self.pid))
            except (OSError, ValueError, IndexError) as error:
                found = [f"cannot be looked at: {error}"]
            if not found or time.monotonic() > deadline or self.process.poll() is not None:
                return found
            time.sleep(0.01)

    def harm(self, command: str = "check", patience: float = SETTLE_S) -> list[str]:
        """All that is wrong with it: [] when it is as it was, and works."""
        found = self.changes(patience)
        if self.process.poll() is not None:
            return [f"it ended: {self.process.returncode} {self.line(0)}"]
        answer = self.ask(command)
        if not answer.startswith("ok"):
            found.append(answer)
        return found

    def end(self) -> None:
        pids = tree_of(self.pid) if self.process.poll() is None else []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


class Command:
    """A torpor command that runs."""

    def __init__(self, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> None:
        self.said = tempfile.TemporaryFile()
        environment = dict(os.environ, PYTHONPATH=str(SOURCE), PYTHONDONTWRITEBYTECODE="1")
        command = [*prefix, os.path.realpath(sys.executable), "-m", "torpor", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, env=environment,
            start_new_session=True,
        )  # fmt: skip

    @classmethod
    def dump(cls, pid: int, images: Path, *options: str) -> "Command":
        return cls("dump", "-t", str(pid), "-D", images, *options)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def engine(self) -> int:
        """The engine process: the front's child; 0 where there is none (any more)."""
        return next(iter(children_of(self.pid)), 0)

    def wait_for_engine(self) -> None:
        """Until there is one, dozens of milliseconds before it does anything to anybody; or the command has ended."""
        while not self.engine and self.process.poll() is None:
            time.sleep(0.001)

    def wait(self, patience: float = 60.0) -> int:
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            told = describe(self.pid)
            self.kill()
            raise AssertionError(f"torpor did not end in {patience:g} s: {told}") from None

    def kill(self) -> None:
        for pid in tree_of(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    @property
    def text(self) -> str:
        self.said.seek(0)
        return self.said.read().decode(errors="replace").strip()


def run(*arguments: str | Path, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """A command's exit status and words."""
    command = Command(*arguments, prefix=prefix)
    status = command.wait()
    return status, command.text


def dump(pid: int, images: Path, *options: str) -> tuple[int, str]:
    return run("dump", "-t", str(pid), "-D", images, *options)
