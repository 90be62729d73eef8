# SPDX-License-Identifier: Apache-2.0
"""Waiting by event (pidfd, inotify) and cleaning up by PID.

The test process is a child subreaper: a restored tree, whose maker leaves, becomes its child, so its exit status is
seen, and so does every orphan of a workload: whatever a case leaves behind is a new child of ours.
"""

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

PR_SET_CHILD_SUBREAPER = 36
IN_MODIFY, IN_CLOEXEC, IN_NONBLOCK = 0x2, 0o2000000, 0o4000

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Timeout(AssertionError):
    """Something that should have happened did not."""


class FileWatch:
    """inotify on one file: wait until `condition()` holds, looked at after each change."""

    def __init__(self, path: Path) -> None:
        self.fd = _libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
        if self.fd < 0 or _libc.inotify_add_watch(self.fd, os.fsencode(path), IN_MODIFY) < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(path))

    def wait(self, condition: Callable[[], bool], pidfd: int, timeout: float) -> bool:
        """True when `condition()` holds; False when the process behind `pidfd` ended first."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while not condition():
            events = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not events:
                raise Timeout(f"nothing happened in {timeout:g} s")
            if any(fd == pidfd for fd, _ in events):
                return condition()
            os.read(self.fd, 65536)
        return True

    def close(self) -> None:
        os.close(self.fd)


def wait_end(pid: int, timeout: float) -> int:
    """Wait until our child `pid` ended, reap it; its wait status."""
    pidfd = os.pidfd_open(pid)
    try:
        if not _readable(pidfd, timeout):
            raise Timeout(f"process {pid} is still there after {timeout:g} s: {describe(pid)}")
    finally:
        os.close(pidfd)
    return os.waitpid(pid, 0)[1]


_SHORT = 1024  # of what the kernel gives a page at a time: a line that did not fit would be longer than the rest


def _readable(fd: int, timeout: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout) * 1000))


def text_of(path: str) -> str:
    """A file of /proc, without what Python's own files cost: a view of a tree reads dozens for each task."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
            if len(part) < _SHORT and not path.endswith("maps"):
                break
    finally:
        os.close(fd)
    return b"".join(parts).decode(errors="backslashreplace")


def children_of(pid: int) -> list[int]:
    """Children of all threads of a process, in the order in which /proc tells them."""
    found: list[int] = []
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for tid in tids:
        try:
            found += map(int, text_of(f"/proc/{pid}/task/{tid}/children").split())
        except OSError:
            continue
    return found


def tree_of(root: int) -> list[int]:
    """A process and all its descendants, parents first."""
    found = [root]
    for pid in found:
        found += children_of(pid)
    return found


def tids_of(root: int) -> list[int]:
    """Every thread of a process and of all its descendants, but for tasks that end meanwhile."""
    found: list[int] = []
    for pid in tree_of(root):
        with contextlib.suppress(FileNotFoundError):
            found += map(int, os.listdir(f"/proc/{pid}/task"))
    return found


def all_asleep(root: int) -> bool:
    """Whether no thread of the tree runs or is about to: a task that is let go, or woken, is R from then on."""
    for pid in tree_of(root):
        try:
            for tid in os.listdir(f"/proc/{pid}/task"):
                state = Path(f"/proc/{pid}/task/{tid}/stat").read_text(errors="replace").rpartition(") ")[2][0]
                if state not in "STZ":
                    return False
        except (FileNotFoundError, ProcessLookupError):
            return False
    return True


def describe(pid: int) -> str:
    """What a process is and what it is doing, for messages."""
    lines = []
    for one in tree_of(pid):
        try:
            comm = Path(f"/proc/{one}/comm").read_text(errors="replace").strip()
            state = Path(f"/proc/{one}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            wchan = Path(f"/proc/{one}/wchan").read_text()
            call = Path(f"/proc/{one}/syscall").read_text().split()[0]
        except OSError as error:
            lines.append(f"{one} ({error.strerror})")
            continue
        lines.append(f"{one} {comm} {state} in {wchan} (system call {call})")
    return "; ".join(lines)


class Nursery:
    """What starts inside the block has ended when the block ends; else it is killed, and `left` says what it was.

    A process may still be on its way out when the root's verdict is in: it gets `grace` seconds.
    """

    def __init__(self, grace: float = 5.0) -> None:
        self.grace = grace
        self.left: list[str] = []

    def __enter__(self) -> "Nursery":
        self.before = set(children_of(os.getpid()))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.sweep(0 if kind else self.grace)
        if self.left and kind is None:
            raise AssertionError("left behind: " + "; ".join(self.left))

    def ours(self) -> list[int]:
        return [pid for pid in children_of(os.getpid()) if pid not in self.before]

    def reap_orphans(self, keep: int = 0) -> None:
        """Reap those of our new children that have ended, all but `keep`."""
        for pid in self.ours():
            if pid != keep:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass

    def sweep(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        while pids := self.ours():
            for pid in pids:
                pidfd = os.pidfd_open(pid)
                if not _readable(pidfd, deadline - time.monotonic()):
                    self.left.append(describe(pid))
                    for one in reversed(tree_of(pid)):
                        try:
                            os.kill(one, signal.SIGKILL)
                        except ProcessLookupError:
                            pass
                    if not _readable(pidfd, 10):
                        raise Timeout(f"cannot end {describe(pid)}")
                os.close(pidfd)
                os.waitpid(pid, 0)


def status_in_words(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit status {os.WEXITSTATUS(status)}"


def pid_exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


@contextmanager
def child(prepare: Callable[[], None] = lambda: None) -> Iterator[int]:
    """A forked child that has run `prepare` and sleeps."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"x"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
