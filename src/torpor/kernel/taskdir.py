# SPDX-License-Identifier: Apache-2.0
"""A task's directory in /proc, held open: thin readers around the parsers of proc.py and status.py.

Holding the directory pins the task: when it ends and its number is taken by another, the files here say that the task
is gone, where a path would show the newcomer.  /proc/PID/task/TID has all files but a few of /proc/PID (timers,
timerslack_ns, task, ... are of the process), so a thread that is not the leader needs its own `TaskDir`.

Every reader raises TaskGone when the task has ended and was reaped, and OSError for the rest: PermissionError without
ptrace rights, FileNotFoundError or ProcessLookupError where a task has no such thing (exe, environ and auxv of a zombie
or a kernel thread; its mountinfo is EINVAL) or the kernel has no such file.
"""

import errno
import os
from types import TracebackType

from torpor.errors import TaskGone
from torpor.kernel import proc
from torpor.kernel.maps import Area, parse_maps, parse_vm_flags
from torpor.kernel.mounts import Mount, parse_mountinfo
from torpor.kernel.procfs import CHUNK, LARGE, read_fd
from torpor.kernel.status import Status, ThreadStatus, parse_status, parse_thread_status
from torpor.typed import Self

_READ = os.O_RDONLY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
UNSET_ID = 0xFFFFFFFF

NAMESPACES = (
    "cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts",
)  # fmt: skip


class TaskDir:
    """/proc/PID, or /proc/PID/task/TID with `tid`.  A context manager; `fd` is its descriptor."""

    __slots__ = ("fd", "pid", "tid")

    def __init__(self, pid: int, tid: int | None = None) -> None:
        self.fd = -1
        self.pid, self.tid = pid, tid
        path = f"/proc/{pid}" if tid is None else f"/proc/{pid}/task/{tid}"
        try:
            self.fd = os.open(path, _DIRECTORY)
        except (FileNotFoundError, ProcessLookupError):
            raise self._gone() from None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _gone(self) -> TaskGone:
        what = f"task {self.pid}" if self.tid is None else f"thread {self.tid} of task {self.pid}"
        return TaskGone(what, "it does not exist (any more)")

    def _explain(self, error: OSError) -> Exception:
        """TaskGone if that is why; else the error itself."""
        if error.errno in (errno.ENOENT, errno.ESRCH):  # ESRCH also: a zombie's environ, auxv, pagemap
            try:
                os.close(os.open("stat", _READ, dir_fd=self.fd))
            except (FileNotFoundError, ProcessLookupError):
                return self._gone()
            except OSError:
                pass
        return error

    def read(self, name: str, size: int = CHUNK) -> bytes:
        """The content of one of its files."""
        try:
            fd = os.open(name, _READ, dir_fd=self.fd)
            try:
                return read_fd(fd, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._explain(error) from None

    def link(self, name: str) -> str:
        """Where one of its symbolic links points to, as shown: " (deleted)" and all."""
        try:
            return os.readlink(name, dir_fd=self.fd)
        except OSError as error:
            raise self._explain(error) from None

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor for one of its files; through exe, cwd, root and fd/N, of the object itself (O_PATH)."""
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            raise self._explain(error) from None

    def optional(self, name: str) -> bytes | None:
        """`read`, or None where the kernel has no such file, or has but no use for it (EINVAL, EOPNOTSUPP)."""
        try:
            return self.read(name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
                return None
            raise

    def numbers(self, name: str) -> list[int]:
        """The numbers that name the entries of a directory of it (task, fd, fdinfo), sorted."""
        fd = self.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(map(int, os.listdir(fd)))
        except OSError as error:
            raise self._explain(error) from None
        finally:
            os.close(fd)

    # What proc.py can parse, file by file.

    def stat(self) -> proc.Stat:
        return proc.parse_stat(self.read("stat"))

    def status(self) -> Status:
        return parse_status(self.read("status"))

    def thread_status(self) -> ThreadStatus:
        return parse_thread_status(self.read("status"))

    def limits(self) -> dict[int, proc.Limit]:
        return proc.parse_limits(self.read("limits"))

    def maps(self) -> list[Area]:
        return parse_maps(self.read("maps", LARGE))

    def vm_flags(self) -> dict[int, frozenset[str]]:
        return parse_vm_flags(self.read("smaps", LARGE))

    def timers(self) -> list[proc.Timer]:
        """FileNotFoundError on a kernel without CONFIG_POSIX_TIMERS or CONFIG_CHECKPOINT_RESTORE."""
        return proc.parse_timers(self.read("timers"))

    def cgroups(self) -> list[proc.Membership]:
        return proc.parse_cgroup(self.read("cgroup"))

    def mounts(self) -> list[Mount]:
        return parse_mountinfo(self.read("mountinfo", LARGE))

    def syscall(self) -> proc.InSyscall:
        return proc.parse_syscall(self.read("syscall"))

    def wchan(self) -> str:
        """The kernel function it sleeps in; "0": none, or not ours to see."""
        return self.read("wchan").decode("ascii", "replace")

    def comm(self) -> bytes:
        return self.read("comm").removesuffix(b"\n")

    def cmdline(self) -> list[bytes]:
        return proc.parse_strings(self.read("cmdline"))

    def environ(self) -> list[bytes]:
        return proc.parse_strings(self.read("environ"))

    def auxv(self) -> list[tuple[int, int]]:
        return proc.parse_auxv(self.read("auxv"))

    def personality(self) -> int:
        return proc.parse_number("personality", self.read("personality"), 16)

    def oom_score_adj(self) -> int:
        return proc.parse_number("oom_score_adj", self.read("oom_score_adj"))

    def timerslack_ns(self) -> int:
        """Of the process's leader only; of other threads prctl(PR_GET_TIMERSLACK) inside tells."""
        return proc.parse_number("timerslack_ns", self.read("timerslack_ns"))

    def loginuid(self) -> int | None:
        """audit(8) login uid; None: not set, or no audit in this kernel."""
        data = self.optional("loginuid")
        number = None if data is None else proc.parse_number("loginuid", data)
        return None if number == UNSET_ID else number

    def label(self) -> bytes | None:
        """The security module's label (attr/current); None: no module has one."""
        data = self.optional("attr/current")
        return None if data is None else data.rstrip(b"\0\n")

    def coredump_filter(self) -> int | None:
        data = self.optional("coredump_filter")
        return proc.parse_number("coredump_filter", data, 16) if data else None

    def tids(self) -> list[int]:
        return self.numbers("task")

    def fds(self) -> list[int]:
        return self.numbers("fd")

    def children(self) -> list[int]:
        """PIDs of the children, of all threads.  Complete only while they and the task are stopped."""
        pids: list[int] = []
        if self.tid is not None:
            return proc.parse_pids(self.read("children"))
        for tid in self.tids():
            try:
                pids += proc.parse_pids(self.read(f"task/{tid}/children"))
            except FileNotFoundError:
                continue  # that thread ended; its children went to another
        return pids

    def namespaces(self) -> dict[str, int]:
        """Name -> inode number, which is the namespace's identity, of those that kernel and task (a zombie) have."""
        found: dict[str, int] = {}
        for name in NAMESPACES:
            try:
                target = self.link("ns/" + name)
            except FileNotFoundError:
                continue
            found[name] = proc.parse_number("ns/" + name, target.partition("[")[2].rstrip("]").encode())
        return found
