# SPDX-License-Identifier: Apache-2.0
"""A workload: one file in tests/workloads that sets up one kernel object, says `ready`, sleeps until SIGTERM, checks.

A comment `wl: key=value ...` in its first 2,000 characters gives what the harness has to know:

    opts=--shell-job,--tcp-close     options for dump and restore; dump= and restore= for one of them
    libs=-lrt                        more for the compiler
    timeout=120                      seconds for `ready` and for the verdict (default 60)
    same=no                          do not compare /proc before and after (why must stand beside it)
    refused=has_sent_data            Torpor refuses to dump it, in a sentence with these words; it goes on and passes
    terminal=yes                     runs as a job of a shell on a terminal outside the tree (terminal.py)
"""

import ctypes
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple, NoReturn

from harness.events import FileWatch, Timeout, describe, status_in_words, wait_end
from harness.failures import CheckFailed, NeverReady
from harness.terminal import Terminal
from torpor.kernel import file_facts

DIRECTORY = Path(__file__).resolve().parent.parent / "workloads"
CFLAGS = ["-O1", "-pthread", "-Wall", "-Wextra", "-Wno-unused-result", "-Wno-sign-compare"]
CFLAGS += ["-Wno-missing-field-initializers"]
# Compiled before anybody forks (procview.py).
HEADER = re.compile(r"(?:/\*|#) wl:(.*?)(?:\*/|$)", re.MULTILINE)
OWNED = re.compile(r"^owns (msg|sem|shm) (\d+)$", re.MULTILINE)
OWNED_FILE = re.compile(r"^owns file (/dev/shm/.+)$", re.MULTILINE)
KEYS = {"opts", "dump", "restore", "libs", "timeout", "same", "terminal", "refused"}


class Content(NamedTuple):
    """Of a file, the holes left out: some are larger than the machine's memory."""

    size: int
    data: dict[int, bytes]


def content_of(path: Path) -> Content:
    data, at = {}, 0
    with path.open("rb") as file:
        fd, size = file.fileno(), file.seek(0, os.SEEK_END)
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                break
            at = os.lseek(fd, start, os.SEEK_HOLE)
            data[start] = os.pread(fd, at - start, start)
    return Content(size, data)


class Skipped(Exception):
    """The workload said that this machine cannot run it."""


class Workload:
    """One source file and what its header says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        head = path.read_text()[:2000]
        found = HEADER.search(head)
        self.header: dict[str, str] = dict(word.split("=", 1) for word in (found[1] if found else "").split())
        if unknown := self.header.keys() - KEYS:
            raise ValueError(f"{path.name}: unknown word in the wl: comment: {', '.join(unknown)}")
        self.timeout = float(self.header.get("timeout", "60"))
        self.refused = self.header.get("refused", "").replace("_", " ")
        self.compared = self.header.get("same") != "no"

    def options(self, verb: str) -> list[str]:
        both = f"{self.header.get('opts', '')},{self.header.get(verb, '')}"
        return [word for word in both.split(",") if word]

    def running(self, directory: Path) -> "Running":
        return Running(self, directory)

    def command(self) -> list[str]:
        if self.path.suffix == ".py":
            return [os.path.realpath(sys.executable), "-S", "-E", "-B", str(self.path)]
        return [str(self.compiled())]

    def compiled(self) -> Path:
        """The program, from the cache if this very source was compiled before; where TORPOR_WORKLOADS names a directory
        of programs, the one there."""
        if built := os.environ.get("TORPOR_WORKLOADS"):
            return Path(built, self.name)
        cache = Path(tempfile.gettempdir()) / f"torpor-workloads-{os.getuid()}"
        cache.mkdir(mode=0o755, exist_ok=True)
        if not shutil.which("gcc"):
            raise Skipped("no C compiler: install gcc")
        return self.build("gcc", [], cache)

    def build(self, compiler: str, more_flags: list[str], cache: Path) -> Path:
        """The program, built by `compiler` unless it is in `cache`."""
        flags = [*CFLAGS, *more_flags, *self.header.get("libs", "").split(",")]
        source = b"".join(path.read_bytes() for path in (self.path, *_headers()))
        digest = hashlib.sha256(source + " ".join(flags).encode()).hexdigest()[:16]
        program = cache / f"{self.name}-{digest}"
        if not program.exists():
            unfinished = f"{program}.{os.getpid()}.{threading.get_native_id()}"
            command = [compiler, "-o", unfinished, str(self.path), *(flag for flag in flags if flag)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or done.stderr:
                raise NeverReady(f"{self.path.name} does not compile cleanly:\n{done.stderr[:1500]}")
            with open(unfinished) as whole:  # else a host that crashes may leave a part of it under its name, for ever
                os.fsync(whole.fileno())
            os.rename(unfinished, program)
        return program


def _headers() -> list[Path]:
    return sorted(DIRECTORY.glob("*.h"))


def all_workloads() -> list[Workload]:
    paths = sorted([*DIRECTORY.glob("*.c"), *DIRECTORY.glob("*.py")])
    return [Workload(path) for path in paths if path.stem != "wl"]


class Running:
    """A workload that was started: the same PID before the dump and after the restore."""

    def __init__(self, workload: Workload, directory: Path) -> None:
        self.workload, self.directory = workload, directory
        self.out = directory / "out"
        self.pid = 0
        self.terminal: Terminal | None = None
        self.saved: dict[Path, tuple[os.stat_result, Content | str]] = {}

    def start(self) -> None:
        """Start it in a session of its own and wait for its `ready`."""
        command = self.command()
        watch = FileWatch(self.out)
        if self.workload.header.get("terminal") == "yes":
            self.terminal = Terminal()
            self.pid = self.terminal.start(command, self.directory, self.out)
        else:
            self.pid = os.fork()
            if self.pid == 0:
                self._become(command)
        self.wait_ready(watch)

    def command(self) -> list[str]:
        """What to execute; afterwards there is a place for it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.out.touch()
        return self.workload.command()

    def _become(self, command: list[str]) -> None:
        try:
            os.setsid()
            os.chdir(self.directory)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(os.open(self.out, os.O_WRONLY | os.O_APPEND), 1)
            os.dup2(1, 2)
            os.closerange(3, 65536)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.umask(0o022)
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "WL_DIR": str(self.directory)}
            if "WL_FEWER" in os.environ:
                environment["WL_FEWER"] = "yes"
            os.execve(command[0], command, environment)
        finally:
            os._exit(126)

    def wait_ready(self, watch: FileWatch) -> None:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # its parent has reaped it already
            self._ended_before_ready()
        try:
            if not watch.wait(lambda: "ready" in self.lines(), pidfd, self.workload.timeout):
                self._ended_before_ready()
        except Timeout as error:
            raise NeverReady(f"{self.workload.name} never said `ready`: {describe(self.pid)}") from error
        finally:
            os.close(pidfd)
            watch.close()

    def _ended_before_ready(self) -> NoReturn:
        status = self.ended(10)
        said = self.lines()
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 77 and said:
            raise Skipped(said[-1].removeprefix("skip: "))
        raise NeverReady(f"{self.workload.name} ended before `ready`, {status_in_words(status)}: {said}")

    def ended(self, timeout: float) -> int:
        """Wait until it has ended, and reap it; its wait status."""
        return wait_end(self.pid, timeout)

    def close(self) -> None:
        """The shell that it was a job of goes, and the terminal with it."""
        if self.terminal:
            self.terminal.close()
            self.terminal = None

    def lines(self) -> list[str]:
        return self.out.read_text(errors="replace").splitlines()

    def outs(self) -> list[Path]:
        """Where it, and each workload in it, says what it owns."""
        return [self.out]

    def save_files(self) -> None:
        """Remember the workload's directory as it is at the dump, so that the images fit it once more."""
        for path in [*self.directory.rglob("*"), *(path for out in self.outs() for path in owned_files(out))]:
            facts = file_facts.lstat(str(path))
            if stat.S_ISLNK(facts.st_mode):
                self.saved[path] = (facts, os.readlink(path))
            elif stat.S_ISREG(facts.st_mode):
                self.saved[path] = (facts, content_of(path))

    def bring_files_back(self) -> dict[tuple[int, int], int]:
        """The directory as save_files saw it: the same inodes where they are still there; else device and old → new."""
        renumbered = {}
        for path, (facts, content) in self.saved.items():
            if isinstance(content, str):
                if not path.is_symlink():
                    os.symlink(content, path)
                continue
            if not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                os.chown(path, facts.st_uid, facts.st_gid)
                os.chmod(path, facts.st_mode & 0o7777)
            if content_of(path) != content:
                with path.open("wb") as file:
                    file.truncate(content.size)
                    for at, data in content.data.items():
                        os.pwrite(file.fileno(), data, at)
            file_facts.utime(str(path), ns=(facts.st_atime_ns, facts.st_mtime_ns))
            inode = file_facts.lstat(str(path)).st_ino
            if inode != facts.st_ino:
                renumbered[facts.st_dev, facts.st_ino] = inode
        return renumbered

    def finish(self) -> None:
        """SIGTERM, then the verdict: exit status 0, last line `pass`, no line `fail`."""
        os.kill(self.pid, signal.SIGTERM)
        self.verdict()

    def verdict(self) -> None:
        try:
            status = self.ended(self.workload.timeout)
        except Timeout as error:
            raise Timeout(f"no verdict after SIGTERM; said {self.lines()}; {error}") from error
        self.said_failure()
        said = self.lines()
        if status or said[-1:] != ["pass"]:
            raise CheckFailed(self.workload.name, [f"{status_in_words(status)}, said {said[-5:]}"])

    def ended_early(self) -> NoReturn:
        """It has ended though it was not told to: raise how, and what it says."""
        status = self.ended(self.workload.timeout)
        self.said_failure()
        raise CheckFailed(self.workload.name, [f"ended by itself, {status_in_words(status)}, said {self.lines()[-3:]}"])

    def said_failure(self) -> None:
        """Raise what the workload itself says is wrong."""
        failures = [line for line in self.lines() if line.startswith("fail:")]
        if failures:
            raise CheckFailed(self.workload.name, failures)

    def wait_killed(self) -> None:
        """The tool that dumped it ended it: reap it."""
        try:
            status = self.ended(10)
        except Timeout as error:
            raise Timeout(f"the dump ended, but not the original: {error}") from error
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            said = self.lines()[-3:]
            raise AssertionError(f"the original did not end by SIGKILL: {status_in_words(status)}, said {said}")


def remove_owned(out: Path) -> None:
    """Remove what a workload said it owns beyond processes, if it failed to: lines "owns msg ID", "owns shm ID" ..."""
    libc = ctypes.CDLL(None)
    text = out.read_text(errors="replace") if out.exists() else ""
    for kind, number in OWNED.findall(text):
        if kind == "sem":
            libc.semctl(int(number), 0, 0)  # IPC_RMID
        else:
            (libc.msgctl if kind == "msg" else libc.shmctl)(int(number), 0, None)
    for path in owned_files(out):
        path.unlink(missing_ok=True)


def make_owned(out: Path) -> None:
    """Make message queues and semaphores again, under their ids, that a workload's original has removed at its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    text = out.read_text(errors="replace") if out.exists() else ""
    for kind, number in re.findall(r"^owns (msg|sem) (\d+)$", text, re.MULTILINE):
        Path(f"/proc/sys/kernel/{kind}_next_id").write_text(number)
        flags = 0o1600  # IPC_CREAT
        got = libc.msgget(0, flags) if kind == "msg" else libc.semget(0, 1, flags)
        assert got == int(number), f"{kind} {number} cannot be made again: {got}, {os.strerror(ctypes.get_errno())}"


def owned_files(out: Path) -> list[Path]:
    """What a workload said it owns outside its directory: lines "owns file PATH"."""
    text = out.read_text(errors="replace") if out.exists() else ""
    return [Path(path) for path in OWNED_FILE.findall(text)]
