# SPDX-License-Identifier: Apache-2.0
"""What resources are given to work with: the dump and the restore as a whole, their tasks, and files as seen.

Resources reach other resources only through these.
"""

import os

from torpor import log
from torpor.errors import Refusal, TorporError, clean
from torpor.kernel.process import pidfd_getfd
from torpor.kernel.procfs import read_all
from torpor.typed import TYPE_CHECKING, Any, Callable, Iterator

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torpor.engine.executor import Executor
    from torpor.engine.freeze import FrozenProcess, FrozenTree
    from torpor.engine.program import Program, Result
    from torpor.engine.stepper import Stepper
    from torpor.engine.team import ThreadTeam
    from torpor.engine.tracee import Tracee
    from torpor.images.directory import ImageReader, ImageWriter
    from torpor.images.schema.core import CoreEntry, TaskKobjIdsEntry
    from torpor.images.schema.fdinfo import FdinfoEntry, FileEntry
    from torpor.images.schema.fs import FsEntry
    from torpor.images.schema.mm import MmEntry
    from torpor.images.schema.torpor import ThreadExtraEntry
    from torpor.kernel.fdinfo import FdInfo
    from torpor.kernel.maps import Area
    from torpor.kernel.proc import Limit, Stat
    from torpor.kernel.status import Status, ThreadStatus
    from torpor.options import Options
    from torpor.resources.extras import Extras
    from torpor.timing import Costs


_limits: "dict[bytes, dict[int, Limit]]" = {}  # by the text in /proc: most tasks of a tree have the same
_names: dict[int, str] = {}  # of tasks, in the dump or check that is under way


def named(pid: int) -> str:
    """ "task 4711 (server)": what people call a task that they are told about."""
    if pid not in _names:
        try:
            _names[pid] = f" ({os.fsdecode(read_all(f'/proc/{pid}/comm')).rstrip()})"
        except OSError:
            return f"task {pid}"
    return f"task {pid}{_names[pid]}"


class SeenFile:
    """An open file description as seen at dump, through one of the descriptors that share it.

    id: its number in files.img.  pid, number: where it was seen.  link: the text of /proc/PID/fd/N.  stat: of the open
    file.  info: its fdinfo.  `fd`: our own descriptor of the same description (pidfd_getfd), fetched on first use.
    """

    __slots__ = ("_fd", "id", "info", "link", "number", "pid", "pidfd", "stat")

    def __init__(
        self, id: int, pid: int, number: int, link: str, stat: os.stat_result, info: "FdInfo", pidfd: int
    ) -> None:
        self.id, self.pid, self.number, self.link, self.stat, self.info = id, pid, number, link, stat, info
        self.pidfd = pidfd
        self._fd = -1

    @property
    def fd(self) -> int:
        """Our descriptor: same offset, flags and queue as the task's.  Never change them, never read from it."""
        if self._fd < 0:
            self._fd = pidfd_getfd(self.pidfd, self.number)
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def where(self) -> str:
        return f"{named(self.pid)}, fd {self.number}"

    @property
    def subject(self) -> str:
        return f"{self.where} ({self.link})"

    def refusal(self, why: str, remedy: str = "") -> Refusal:
        return Refusal(self.subject, why, remedy)


class DumpTask:
    """A process at dump, frozen.  A zombie has no threads, no areas, no runner.

    running: only looked at before the freeze, or by a check: it is not stopped, so ptrace tells nothing of it.
    """

    running = False

    def __init__(self, frozen: "FrozenProcess", stat: "Stat") -> None:
        self.pid, self.ppid, self.frozen, self.stat = frozen.pid, frozen.ppid, frozen, stat
        self.pgid, self.sid = stat.pgrp, stat.session
        self.zombie = frozen.zombie and not frozen.threads
        self.threads: list[Tracee] = list(frozen.threads.values())
        self.status: Status | None = None  # the process's, by its leader
        self.thread_statuses: dict[int, ThreadStatus] = {}  # by TID
        self.areas: list[Area] = []
        self.ids: TaskKobjIdsEntry | None = None
        self.pidfd = -1
        self.numbers: dict[int, list[int]] = {}  # descriptors, by TID of a thread with an fd table of its own
        self._limits: dict[int, Limit] | None = None
        self.own_files: set[int] = set()  # TIDs of threads with an fd table of their own
        self.runner: Executor | Stepper | None = None
        self.team: ThreadTeam | None = None
        # Left by attributes for others to write:
        self.thread_timers: list[int] = []  # POSIX timers on some thread's CPU clock
        self.stopped_children: list[int] = []
        self.has_children = False  # that run
        self.pending: dict[int, list[bytes]] = {}  # siginfo of pending signals by TID; 0: of the process
        self.clear_child_tid: dict[int, int] = {}  # by TID; stands among the registers in images
        self.process_extras: dict[str, Any] = {}  # fields of TaskExtraEntry
        self.thread_extras: dict[int, ThreadExtraEntry] = {}  # by TID

    @property
    def leader(self) -> "Tracee":
        """The thread in which process-wide programs run."""
        return self.threads[0]

    def named(self, thread: "Tracee") -> str:
        """A thread, in a sentence about the task."""
        return "it" if thread is self.leader else f"its thread {thread.tid}"

    def of_other_threads(self, read: "Callable[[int], bytes]") -> "Iterator[tuple[int, bytes]]":
        """TID, and what `read` says of it, of each thread but the leader; those that have ended meanwhile are left out
        (OSError)."""
        for thread in self.threads[1:]:
            try:
                found = read(thread.tid)
            except OSError:
                continue
            yield thread.tid, found

    @property
    def limits(self) -> "dict[int, Limit]":
        """Resource limits by RLIMIT_* number."""
        if self._limits is None:
            from torpor.kernel.proc import parse_limits

            data = read_all(f"/proc/{self.leader.tid}/limits")
            if data not in _limits:
                _limits[data] = parse_limits(data)
            self._limits = _limits[data]
        return self._limits

    @property
    def subject(self) -> str:
        return f"task {self.pid} ({os.fsdecode(self.stat.comm)})"

    def refusal(self, why: str, remedy: str = "", code: str = "unsupported") -> Refusal:
        return Refusal(self.subject, why, remedy, code=code)

    def run(self, program: "Program") -> None:
        if len(program):
            assert self.runner is not None
            self.runner.run(program)


class Dump:
    """One dump.  `state` is for resources: anything that save() leaves for late(), under the kind's own key."""

    def __init__(self, options: "Options", images: "ImageWriter") -> None:
        self.options, self.images = options, images
        _names.clear()
        self.tree: FrozenTree | None = None  # as soon as it stands still
        self.tasks: dict[int, DumpTask] = {}  # parents before children
        self.file_entries: list[FileEntry] = []
        self.state: dict[str, Any] = {}
        self.costs: Costs | None = None  # where it is asked how long each kind of object takes
        self._next_file_id = 0

    def refuse(self, refusal: Refusal) -> None:
        """Something cannot be dumped.  A dump ends here; a check collects them: go on after it."""
        raise refusal

    def warn(self, message: str) -> None:
        """Something is dumped that a restore cannot bring back whole, though it is no reason to refuse it all."""
        log.warning(clean(message))

    def new_file_id(self) -> int:
        """A number for files.img: also for mapped files, executables, working directories."""
        self._next_file_id += 1
        return self._next_file_id

    def setdefault(self, key: str, value: Any) -> Any:
        """Shorthand for state: the list or dict that a resource collects in."""
        return self.state.setdefault(key, value)


class RestoreTask:
    """A task to be restored: what the images say of it, then what stands of it."""

    def __init__(self, pid: int, ppid: int, pgid: int, sid: int, threads: list[int]) -> None:
        self.pid, self.ppid, self.pgid, self.sid, self.threads = pid, ppid, pgid, sid, threads
        self.restore: Restore | None = None  # set when the task joins one
        self.cores: dict[int, CoreEntry] = {}  # by TID
        self.mm: MmEntry | None = None
        self.fs: FsEntry | None = None
        self.ids: TaskKobjIdsEntry | None = None
        self.fds: list[FdinfoEntry] = []
        self.children: list[RestoreTask] = []
        self.memory_from = 0  # PID whose memory it got at birth; 0: nobody's
        self.tracee: Tracee | None = None
        self.runner: Executor | None = None
        self.tracees: dict[int, Tracee] = {}  # all threads, by TID
        # Kept by attributes from one phase to the next:
        self.credentials: Any = None  # creds.py: what threads start as
        self.extras: Extras = None  # type: ignore[assignment]  # by names.py's check
        self.loginuid_written: Result | None = None
        self.pending_timers: dict[int, int] | None = None  # timers.py: those that queue their signals themselves

    @property
    def executor(self) -> "Executor":
        """Of a task that stands."""
        assert self.runner is not None
        return self.runner

    @property
    def core(self) -> "CoreEntry":
        """The leader's."""
        return self.cores[self.pid]

    @property
    def dead(self) -> bool:
        """A zombie: it only has an exit code."""
        tc = self.core.tc
        return tc is None or tc.task_state in (2, 6)

    @property
    def leader_ended(self) -> bool:
        """Whether the main thread has ended while others live: it is made again, and ends when all stands."""
        return self.core.thread_core is None

    @property
    def subject(self) -> str:
        tc = self.core.tc
        return f"task {self.pid} ({tc.comm if tc else '?'})"

    def refusal(self, why: str, remedy: str = "", code: str = "unsupported") -> Refusal:
        return Refusal(self.subject, why, remedy, code=code)


class _Trying:
    """Lets everything through (contextlib's nullcontext would take milliseconds to import)."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_TRYING = _Trying()


class Restore:
    """One restore."""

    def __init__(self, options: "Options", images: "ImageReader") -> None:
        self.options, self.images = options, images
        self.tasks: dict[int, RestoreTask] = {}  # parents before children
        self.files: dict[int, FileEntry] = {}  # files.img by id
        self.made: dict[int, int] = {}  # file id -> our descriptor
        self.state: dict[str, Any] = {}

    def problem(self, error: TorporError) -> None:
        """It cannot be restored.  A restore ends here; a check collects what is in the way: go on after it."""
        raise error

    def trying(self) -> "AbstractContextManager[None]":
        """What fails inside is a problem; what comes after it does not depend on it."""
        return _TRYING

    def descriptor(self, id: int) -> int:
        """Our descriptor of a file that has been made."""
        return self.made[id]
