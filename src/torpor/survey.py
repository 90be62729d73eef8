# SPDX-License-Identifier: Apache-2.0
"""Looking at a tree that runs: nothing is stopped, nothing is changed.

The dump looks before it freezes, so that most of what it cannot do is refused before the victim notices anything;
``check -t`` looks at everything and collects.  Both ask the same resources as the dump proper, whose answers count, as
what runs can change at any moment.  So whatever has vanished when we come to look at it is left out, silently.

Our descriptors of a task's files (pidfd_getfd) are closed at once; until then a pipe that the task closes stays open.
"""

import errno
import os
import time

from torpor import dump_collect as collect
from torpor import dump_files
from torpor.arch import native
from torpor.engine.freeze import FrozenProcess
from torpor.engine.seizing import in_execve
from torpor.engine.stops import is_ending
from torpor.engine.tracee import Tracee
from torpor.engine.waiting import check_cancelled
from torpor.errors import Refusal, TaskGone, TorporError
from torpor.kernel import fdinfo, file_facts
from torpor.kernel.maps import Area, kind, parse_vm_flags, read_maps
from torpor.kernel.proc import parse_pids, parse_stat
from torpor.kernel.process import compare_files, pidfd_open, pidfd_open_thread
from torpor.kernel.procfs import LARGE, ParseError, read_all, read_link
from torpor.kernel.status import parse_status, parse_thread_status
from torpor.memory import areas as vma
from torpor.memory import layout, own_vdso
from torpor.memory.dump import AddressSpace
from torpor.resources import ghost, in_memory, link_remap, namespaces, pipe_queue, registry, regular
from torpor.resources.context import Dump, DumpTask, SeenFile
from torpor.resources.security import refuse_locks
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.directory import ImageWriter
    from torpor.options import Options

_VANISHED = frozenset({errno.ENOENT, errno.ESRCH, errno.EBADF, errno.EINVAL})
ZOMBIE = "ZX"
EXAMINED = 16  # tasks of a tree
LONG_S, PAUSE_S = 1.0, 0.005  # which a check waits for execve(2); between two looks


class Survey(Dump):
    """A dump that never happens: refusals are collected."""

    def __init__(self, options: "Options") -> None:
        super().__init__(options, _no_images())
        self.refusals: list[Refusal] = []
        self.warnings: list[str] = []
        self.state["attributes"] = registry.attributes()

    def refuse(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def looking(self, subject: str, task: DumpTask | None = None) -> "Looking":
        """What is refused inside is noted, what has vanished is passed over, and missing rights are a refusal.  Where
        `task` is just ending, what was seen of it is forgotten."""
        return Looking(self, subject, task)


class Looking:
    """One look of a survey (a class: contextlib takes milliseconds to import)."""

    def __init__(self, survey: Survey, subject: str, task: DumpTask | None) -> None:
        self.survey, self.subject, self.task = survey, subject, task

    def __enter__(self) -> None:
        self.before = len(self.survey.refusals)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """True: what was raised is dealt with."""
        refusals = self.survey.refusals
        if isinstance(error, Refusal):
            self.survey.refuse(error)
        elif isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES):
            self.survey.refuse(Refusal(self.subject, "no permission to look at it",
                                       "run as root, or with CAP_SYS_PTRACE", code="no-rights"))  # fmt: skip
        elif isinstance(error, OSError) and error.errno in _VANISHED:
            pass
        elif isinstance(error, ParseError) and self.task is not None and ending(self.task):
            pass  # its files in /proc are empty
        elif error is not None and not isinstance(error, TaskGone):
            return False
        if self.task is not None and len(refusals) > self.before and ending(self.task):
            del refusals[self.before :]
        return True


def _no_images() -> "ImageWriter":
    """What a survey writes images with: whatever it is asked for is a mistake."""
    return None  # type: ignore[return-value]


def tree(root: int) -> dict[int, DumpTask]:
    """The tasks below and with process `root` as they are now, parents before children.  Raises TaskGone."""
    found: dict[int, DumpTask] = {}
    queue = [(root, 0)]
    for pid, ppid in queue:  # which grows meanwhile
        try:
            task, children = _task(pid, ppid)
        except (OSError, TaskGone):
            if pid == root:
                raise TaskGone(f"there is no process {root}", remedy="check the PID given with -t") from None
            continue
        found[pid] = task
        queue += [(child, pid) for child in children if child not in found]
    return found


def _task(pid: int, ppid: int) -> tuple[DumpTask, list[int]]:
    stat = parse_stat(read_all(f"/proc/{pid}/stat"))
    tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid))
    if not tids:
        raise ProcessLookupError
    children: list[int] = []
    for tid in tids:
        try:
            children += parse_pids(read_all(f"/proc/{pid}/task/{tid}/children"))
        except OSError:
            pass  # that thread has ended
    zombie = stat.state in ZOMBIE  # of the leader; other threads may live
    threads = {tid: Tracee(tid, pid) for tid in tids if not (zombie and tid == pid)}
    task = DumpTask(FrozenProcess(pid, ppid, threads, zombie, children), stat)
    task.running = True
    return task, children


def foresee(dump: Dump, root: int) -> list[DumpTask]:
    """Before the freeze: refuse at once what needs no second look, and import what the open files will need.  Whatever
    cannot be seen yet is left to the dump.  Returns the tasks that are alive.

    A look at a task takes a third of a millisecond, and in a large tree most tasks are alike: the first ones and those
    that begin a session are examined; of the others only the descriptors, and what is never looked at again.
    """
    own = dump.state["own namespaces"]
    tasks = tree(root)
    refuse_blind(dump, root)
    collect.refuse_ties(dump, tasks)
    modules: set[str] = set()
    for number, task in enumerate(tasks.values()):
        if task.zombie:
            continue
        try:
            if number < EXAMINED or task.pid == task.sid:
                status(task, all_threads=False)
                examine(dump, task, own)
            else:
                _examine_running(dump, task)
            modules |= _foresee_files(task)
        except (OSError, TaskGone):
            pass
        except TorporError:
            if not ending(task):
                raise
    dump.state.pop("own cgroups", None)
    for module in modules:
        registry.import_resource(module)
    return [task for task in tasks.values() if not task.zombie]


def ending(task: DumpTask) -> bool:
    """Whether a task that runs is about to end, or has ended.  It has left its namespaces and cgroups by then, so what
    a look at it found says nothing."""
    return is_ending(task.leader.tid)


def _foresee_files(task: DumpTask) -> set[str]:
    """By the links alone, 3 µs a descriptor; returns the modules that the files need."""
    modules: set[str] = set()
    starts: set[str] = set()
    directory = f"/proc/{task.leader.tid}/fd"
    for name in os.listdir(directory):
        try:
            link = os.readlink(f"{directory}/{name}")
        except OSError:
            continue
        if link[0] != "/" and (key := registry.key_of_link(link)) in registry.REFUSED:
            raise Refusal(f"{task.subject}, fd {name} ({link})", *registry.REFUSED[key])
        if (start := link[:12]) not in starts:  # enough of it to tell
            starts.add(start)
            modules.update(registry.modules_of_link(link))
    return modules


def status(task: DumpTask, all_threads: bool = True) -> None:
    """Read /proc/PID/status, of each thread or of the first.  Raises OSError, TaskGone."""
    leader = task.leader.tid
    data = read_all(f"/proc/{leader}/status")
    task.status, task.thread_statuses[leader] = parse_status(data), parse_thread_status(data)
    for thread in task.threads[1:] if all_threads else ():
        try:
            data = read_all(f"/proc/{task.pid}/task/{thread.tid}/status")
        except OSError:
            continue  # it has ended
        task.thread_statuses[thread.tid] = parse_thread_status(data)


def refuse_blind(dump: Dump, root: int) -> None:
    """Where nobody tells us what file is mapped: /proc/PID/map_files needs a capability, whosever the process is."""
    for name in os.listdir("/proc/self/map_files")[:1]:
        try:
            file_facts.stat(f"/proc/self/map_files/{name}")
        except PermissionError:
            why = "no permission to look at the files that it has mapped (/proc/PID/map_files)"
            remedy = "run as root, or with CAP_CHECKPOINT_RESTORE, in the initial user namespace"
            dump.refuse(Refusal(f"process {root}", why, remedy, code="no-rights"))


def examine(dump: Dump, task: DumpTask, own: dict[str, int]) -> None:
    """What the dump will examine of a task that runs.  Its status must have been read."""
    assert task.status is not None
    if task.status.tracer and task.status.tracer != os.getpid():
        why = f"process {task.status.tracer} traces it already (a debugger, strace, or another dump)"
        dump.refuse(task.refusal(why, "end the tracer first", code="traced"))
    namespaces.refuse(dump, task, own)
    for attribute in dump.state["attributes"]:
        attribute.examine(task, dump)
    _examine_running(dump, task)


def _examine_running(dump: Dump, task: DumpTask) -> None:
    for attribute in dump.state["attributes"]:
        attribute.examine_running(task, dump)
    _await_execve(dump, task)


def _await_execve(dump: Dump, task: DumpTask) -> None:
    """A thread that is inside execve(2) cannot be traced, whoever tries has to wait, and what of the tree had been
    stopped by then would wait with it.  Mostly that is over at once, but not where the program is on a file system that
    does not answer, or somebody else's tracer has not heard of a thread's end.  Raises Refusal."""
    given = LONG_S if isinstance(dump, Survey) else dump.options.timeout or float("inf")
    until = time.monotonic() + given
    while tid := in_execve(thread.tid for thread in task.threads):
        if time.monotonic() > until:
            it = "it" if tid == task.pid else f"its thread {tid}"
            why = f"{it} is in execve(2) since {given:g} s, which waits for something itself"
            raise task.refusal(why, "try again when that is over", code="unstoppable")
        check_cancelled()
        time.sleep(PAUSE_S)


def examine_path(survey: Survey, subject: str, link: str, stat: os.stat_result) -> None:
    """What saving a file by its path would refuse.  Raises Refusal."""
    name, gone = regular.locate(survey, subject, link, stat)
    if gone and stat.st_nlink == 0:
        ghost.examine(survey, f"{subject} ({link})", stat)
    elif gone:
        link_remap.examine(survey, f"{subject} ({link})", name, stat)


class Files:
    """The open files of a tree.  `seen`: registry key of each description."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self._places: list[tuple[int, int]] = []  # one (TID, number) of each description
        self._likely: dict[tuple[int, int, int, int, int], int] = {}  # what may be the same, by number; -1: any
        self.seen: list[str] = []
        self.descriptors = 0
        self._contents: dict[tuple[int, int], int] = {}  # inode -> bytes that the images will have of it

    def contents_but(self, mapped: set[tuple[tuple[int, int], int]]) -> dict[tuple[int, int], int]:
        """By device and inode: bytes of files without a name, of pipes, and of memfds other than those `mapped`."""
        return {
            (device, inode): size
            for (device, inode), size in self._contents.items()
            if ((os.major(device), os.minor(device)), inode) not in mapped
        }

    def look(self, task: DumpTask, tid: int) -> None:
        """The table of a thread: examine each description that was not met before."""
        pidfd = pidfd_open(tid) if tid == task.pid else pidfd_open_thread(tid, task.subject)
        directory = -1
        try:
            directory = os.open(f"/proc/{tid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for number in sorted(map(int, os.listdir(directory))):
                with self.survey.looking(f"{task.subject}, fd {number}"):
                    self._look(task, tid, number, directory, pidfd)
        finally:
            os.close(pidfd)
            if directory >= 0:
                os.close(directory)

    def _known(self, tid: int, number: int, key: tuple[int, int, int, int]) -> bool:
        """Whether it was met before: under the same number in another table (fork), or just before (dup).  Two
        questions at most; what is missed is looked at twice, which a check can afford and a dump could not."""
        for hint in (number, -1):
            index = self._likely.get((*key, hint))
            if index is not None and compare_files(self._places[index], (tid, number)) == 0:
                return True
        index = len(self._places)
        self._places.append((tid, number))
        self._likely[*key, number] = self._likely[*key, -1] = index
        self.seen.append("fd:anon")
        return False

    def _look(self, task: DumpTask, tid: int, number: int, directory: int, pidfd: int) -> None:
        name = str(number)
        stat = file_facts.stat(name, dir_fd=directory)
        info = fdinfo.read(tid, number)
        link = read_link(f"{task.subject}, fd {number}", name, directory)
        self.descriptors += 1
        if info.locks:
            with self.survey.looking(""):
                refuse_locks(f"{task.subject}, fd {number} ({link})", info)
        key = (stat.st_dev, stat.st_ino, info.pos, info.status_flags)
        if self._known(tid, number, key):
            return
        seen = SeenFile(len(self.seen) + 1, task.pid, number, link, stat, info, pidfd)
        try:
            self.seen[-1] = dump_files.kind_of(seen)
            dump_files.examine(self.survey, seen, self.seen[-1])
            if registry.FILES.get(self.seen[-1]) in ("regular", "fifo"):
                examine_path(self.survey, f"{task.subject}, fd {number}", link, stat)
            if (size := _content(seen, self.seen[-1])) is not None:
                self._contents[stat.st_dev, stat.st_ino] = size
        finally:
            seen.close()


def _content(seen: SeenFile, key: str) -> int | None:
    """Bytes of this file that will be in the images; None: it is left where it is."""
    if key in ("fd:pipe", "fd:fifo"):
        return pipe_queue.bytes_in(seen.fd)
    if key == "fd:memfd" or (key in ("fd:regular", "fd:path") and seen.stat.st_nlink == 0):
        return seen.stat.st_blocks * 512
    return None


class Memory:
    """The address spaces of a tree.  `kinds`: of each kind of area (mapped, to be stored), in bytes; `segments`: device
    and inode of the shared ones."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.areas = 0
        self.spans: list[layout.Span] = []  # of all areas, where addresses are scarce
        self.executors: dict[int, int] = {}  # how many will be in each address space at a restore
        self.kinds: dict[str, list[int]] = {}
        self.segments: set[tuple[tuple[int, int], int]] = set()
        self.ghosts: dict[tuple[int, int], int] = {}

    def look(self, task: DumpTask) -> None:
        """One task's memory; not for tasks that live in another's."""
        pid = task.leader.tid
        task.areas = read_maps(pid)
        self.areas += len(task.areas)
        if native().short_stub_layout:
            self.spans += [(area.start, area.end) for area in task.areas]
        with self.survey.looking(task.subject):
            vma.check_count(task, len(task.areas), vma.most_areas())
        flags = parse_vm_flags(read_all(f"/proc/{pid}/smaps", LARGE))
        exe = f"/proc/{pid}/exe"
        with self.survey.looking(task.subject):
            where = f"{task.subject}, its executable"
            self.examine_path(where, read_link(where, exe), exe)
        for area in task.areas:
            what = kind(area)
            if what == "vdso":
                with self.survey.looking(task.subject):
                    try:
                        own_vdso.refuse_changed(task, area, lambda start, size: own_vdso.read(pid, start, size))
                    except OSError:
                        if area in read_maps(pid):
                            raise
                        # It has executed another program since.
            with self.survey.looking(task.subject):
                vma.describe(task, area, what, flags.get(area.start, frozenset()))
            if what == "file":
                with self.survey.looking(task.subject):
                    self._examine_file(task, area)
        self._count(task)

    def check_room(self, root: DumpTask) -> None:
        layout.check_room(root.subject, max(self.executors.values(), default=1), self.spans, native())

    def _examine_file(self, task: DumpTask, area: Area) -> None:
        if not (area.deleted or area.path.startswith("/proc/")):
            in_memory.note_area(self.survey, area)
            return  # 3 µs of stat for each of 10,000 areas would find the same: its name is there
        path = f"/proc/{task.leader.tid}/map_files/{area.start:x}-{area.end:x}"
        self.examine_path(f"{task.subject}, area {area.start:#x}-{area.end:#x}", area.path, path)

    def examine_path(self, subject: str, link: str, path: str) -> None:
        stat = file_facts.stat(path)
        in_memory.note(self.survey, link, stat)
        examine_path(self.survey, subject, link, stat)
        if stat.st_nlink == 0:
            self.ghosts[stat.st_dev, stat.st_ino] = stat.st_blocks * 512

    def _count(self, task: DumpTask) -> None:
        space = AddressSpace(task)
        space.scan(vma.zeros_merged())
        stored = iter(space.runs)
        run = next(stored, None)
        for area in task.areas:
            entry = self.kinds.setdefault(_WORDS.get(kind(area), kind(area)), [0, 0])
            entry[0] += area.size
            if area.shared:
                entry[1] += self._shared(task, area)
            while run is not None and run[0] < area.end:
                entry[1] += run[1] - run[0]
                run = next(stored, None)

    def _shared(self, task: DumpTask, area: Area) -> int:
        """Bytes of a shared segment, the first time that it is met."""
        key = (area.dev, area.inode)
        if kind(area) not in ("shmem", "memfd", "sysv") or key in self.segments:
            return 0
        self.segments.add(key)
        try:
            return file_facts.stat(f"/proc/{task.leader.tid}/map_files/{area.start:x}-{area.end:x}").st_blocks * 512
        except OSError:
            return 0


_WORDS = {
    "anon": "anonymous", "shmem": "shared anonymous", "sysv": "System V", "file": "files", "vdso": "kernel's",
    "vvar": "kernel's", "vvar_vclock": "kernel's", "vsyscall": "kernel's", "sigpage": "kernel's",
    "vectors": "kernel's",
}  # fmt: skip
