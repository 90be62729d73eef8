# SPDX-License-Identifier: Apache-2.0
"""Tables of descriptors, working directories and roots at restore.

Every open file description is made once, by the controller, in an order in which nothing comes before what it needs,
and sent to each table that has it.  The kernel gives a received descriptor the lowest free number.  Sent in the order
of their final numbers, none lies above its place, so moving them from the last to the first never hits one that still
has to move; mostly they are in place at once and nothing is moved.  The executors' sockets are put on numbers that the
table does not use.

Tasks may share a table (CLONE_FILES): it is filled by the first of them.
"""

import os

from torpor.engine.executor import MSG_CMSG_CLOEXEC, SCM_MAX_FD, Executor, received
from torpor.engine.program import Load32, Program
from torpor.engine.together import run_together
from torpor.engine.waiting import check_cancelled
from torpor.errors import ImageError, Refusal, RestoreFailed, TorporError
from torpor.images import kinds
from torpor.images.schema.fdinfo import FdinfoEntry, FileEntry
from torpor.kernel import file_facts
from torpor.resources import extras, registry
from torpor.resources.base import FileKind
from torpor.resources.description import Described, check_owner
from torpor.typed import TYPE_CHECKING, Iterable

if TYPE_CHECKING:
    from torpor.engine.together import Work
    from torpor.resources.context import Restore, RestoreTask

F_SETFD = 2
FD_CLOEXEC = 1
MAX_FD = 1 << 30
_LAST = 0xFFFFFFFF


class Files:
    """All open files of a restore."""

    def __init__(self, restore: "Restore") -> None:
        self.restore = restore
        self.kinds: dict[int, FileKind] = {}
        self.tables: dict[int, list[FdinfoEntry]] = {}  # files_id -> by number
        self.order: list[int] = []  # ids, needed ones first
        self.places: dict[int, tuple[RestoreTask, int]] = {}  # id -> its first descriptor

    # -- before anything is created -----------------------------------------------------------------------------------
    def check(self, limit: int) -> None:
        """All that the images say of files; `limit`: the hard limit of descriptors.  Raises ImageError, Refusal."""
        restore = self.restore
        for entry in restore.files.values():
            try:
                kind = _kind(entry)
                kind.check(entry, restore)
                if isinstance(kind, Described):
                    check_owner(entry.id, kind.owner(entry))
                self.kinds[entry.id] = kind
            except TorporError as error:
                restore.problem(error)
        wanted: list[int] = []
        for task in restore.tasks.values():
            if task.dead or task.ids is None:
                continue
            if task.ids.files_id not in self.tables:
                name = kinds.FDINFO.file_name(task.ids.files_id)
                # CRIU leaves out an empty table's image, Torpor does not.
                if restore.images.exists(kinds.TORPOR_TASK, task.pid) and not restore.images.exists(
                    kinds.FDINFO, task.ids.files_id
                ):
                    restore.problem(ImageError(f"{name} is missing", code="missing-image"))
                self.tables[task.ids.files_id] = self.table(task.ids.files_id, limit)
            task.fds = self.tables[task.ids.files_id]
            wanted += [fd.id for fd in task.fds]
            for tid, files_id in thread_tables(restore, task).items():
                self.tables[files_id] = self.table(files_id, limit)
                wanted += [fd.id for fd in self.tables[files_id]]
                if tid not in task.cores:
                    raise ImageError(f"{kinds.TORPOR_TASK.file_name(task.pid)} is mangled", f"it has no thread {tid}")
            if task.fs is None:
                raise ImageError(f"{kinds.FS.file_name(task.pid)} is missing", code="missing-image")
            for id in (task.fs.cwd_id, task.fs.root_id):
                if id not in restore.files:
                    raise ImageError("files.img is incomplete", f"a directory has id {id}, which is not there")
        self._sort(wanted)

    def table(self, files_id: int, limit: int) -> list[FdinfoEntry]:
        name = kinds.FDINFO.file_name(files_id)
        entries = sorted(self.restore.images.entries(kinds.FDINFO, files_id), key=lambda entry: entry.fd)
        for i, entry in enumerate(entries):
            if (i and entries[i - 1].fd == entry.fd) or entry.fd >= MAX_FD:
                raise ImageError(f"{name} is mangled", f"descriptor {entry.fd} is there twice, or cannot be")
            file = self.restore.files.get(entry.id)
            if file is None or file.type != entry.type:
                raise ImageError(
                    f"{name} is mangled", f"the file {entry.id} of descriptor {entry.fd} is not in files.img"
                )
        if entries and entries[-1].fd >= limit:
            raise Refusal(
                f"descriptor {entries[-1].fd} in {name}",
                f"Torpor's own limit of open files is {limit}",
                "raise it (ulimit -Hn)",
                code="no-rights",
            )
        return entries

    def _sort(self, wanted: Iterable[int]) -> None:
        """Depth first, by what files need; without recursion, for chains may be long."""
        state: dict[int, int] = {}  # 1: open, 2: done
        for first in wanted:
            if first in state:
                continue
            if first in self.kinds and _does_nothing(self.kinds[first], "needs"):  # nearly all
                state[first] = 2
                self.order.append(first)
                continue
            stack = [first]
            while stack:
                id = stack[-1]
                if state.get(id) == 2:
                    stack.pop()
                    continue
                if state.get(id) == 1:
                    state[id] = 2
                    self.order.append(id)
                    stack.pop()
                    continue
                state[id] = 1
                entry = self.restore.files.get(id)
                if entry is None:
                    raise ImageError("files.img is incomplete", f"file {id} is not there")
                kind = self.kinds.get(id)  # None: of no known kind, or mangled, which has been told
                for need in kind.needs(entry, self.restore) if kind is not None else ():
                    if state.get(need) == 1:
                        raise ImageError("files.img is mangled", f"files {id} and {need} need each other")
                    stack.append(need)

    # -- making -------------------------------------------------------------------------------------------------------
    def make(self) -> None:
        restore = self.restore
        for i, id in enumerate(self.order):
            if not i % 64:
                check_cancelled()
            self.ensure(id)
        for id in self.order:
            if not _does_nothing(self.kinds[id], "wire"):
                try:
                    self.kinds[id].wire(restore.files[id], restore.made[id], restore)
                except OSError as error:
                    raise self._failed(id, error) from error

    def ensure(self, id: int) -> int:
        """Our descriptor of a file, made on first use."""
        made = self.restore.made
        if id not in made:
            entry = self.restore.files[id]
            try:
                made[id] = self.kinds[id].make(entry, self.restore)
            except OSError as error:
                name = entry.reg.name if entry.reg is not None else type(self.kinds[id]).__name__.lower()
                where = f" ({error.filename})" if error.filename and error.filename != name else ""
                raise RestoreFailed(
                    f"cannot open file {id} ({name}) again", f"{os.strerror(error.errno or 0)}{where}"
                ) from error
        return made[id]

    def close(self) -> None:
        for fd in set(self.restore.made.values()):
            try:
                os.close(fd)
            except OSError:
                pass
        self.restore.made.clear()

    # -- placing ------------------------------------------------------------------------------------------------------
    def fill_tables(self, limit: int) -> None:
        """Send every table its descriptors."""
        sharers: dict[int, list[RestoreTask]] = {}
        for task in self.restore.tasks.values():
            if not task.dead and task.ids is not None:
                sharers.setdefault(task.ids.files_id, []).append(task)
        works = []
        for files_id, tasks in sharers.items():
            runners = [task.executor for task in tasks]
            works.append((runners[0], fill(self.restore, self.tables[files_id], runners, limit)))
            for entry in self.tables[files_id]:
                self.places.setdefault(entry.id, (tasks[0], entry.fd))
        run_together(works)

    def place(self, programs: dict[int, Program]) -> None:
        """What the kinds do inside the first task that has a file."""
        for id in self.order:
            if id in self.places:
                task, number = self.places[id]
                self.kinds[id].place(self.restore.files[id], task, number, programs[task.pid])

    def fill_thread(self, task: "RestoreTask", runner: Executor, files_id: int, limit: int) -> Program:
        """Fill the table of a thread that has its own; returns what the kinds have to do there."""
        run_together([(runner, fill(self.restore, self.tables[files_id], [runner], limit))])
        program = Program()
        for entry in self.tables[files_id]:
            if entry.id not in self.places:
                self.places[entry.id] = task, entry.fd
                self.kinds[entry.id].place(self.restore.files[entry.id], task, entry.fd, program)
        return program

    def last(self) -> None:
        for id in self.order:
            try:
                self.kinds[id].last(self.restore.files[id], self.restore.made[id], self.restore)
            except OSError as error:
                raise self._failed(id, error) from error

    def _failed(self, id: int, error: OSError) -> RestoreFailed:
        """What stands of a file cannot be made what it was."""
        from torpor.resources import lacking, words

        reg = self.restore.files[id].reg
        name = reg.name if reg is not None else words.FILES[min(self.kinds[id].covers)]
        what = f"{lacking.file_subject(self.restore, id, name)} cannot come back as it was"
        return RestoreFailed(what, os.strerror(error.errno or 0))


def _does_nothing(kind: FileKind, hook: str) -> bool:
    """Whether a kind leaves a hook as it is: thousands of files need not be asked one by one."""
    return getattr(type(kind), hook) is getattr(FileKind, hook)


def thread_tables(restore: "Restore", task: "RestoreTask") -> dict[int, int]:
    """Threads that have a table of their own: TID -> files_id.  CRIU's images have none."""
    threads = extras.load(restore, task.pid).threads
    return {tid: extra.files_id for tid, extra in threads.items() if extra.files_id is not None}


def fill(restore: "Restore", table: list[FdinfoEntry], runners: list[Executor], limit: int) -> "Work":
    """Fill one table, which these executors share, by the first of them; all that is in it goes."""
    used = {entry.fd for entry in table}
    controls = _free_numbers(used | {runner.fd for runner in runners}, len(runners), limit)
    run_together([(runner, runner.move_fd(number)) for runner, number in zip(runners[1:], controls[1:], strict=True)])
    first = runners[0]
    yield from first.move_fd(controls[0])
    program = Program()
    at = 0
    for number in sorted(controls):
        if number > at:
            program.call("close_range", at, number - 1, 0)
        at = number + 1
    program.call("close_range", at, _LAST, 0)
    taken = set(controls)
    lowest = 0
    for start in range(0, len(table), SCM_MAX_FD) or [0]:
        some = table[start : start + SCM_MAX_FD]
        if not some:
            yield program
            return
        on_exec = sum(entry.flags & FD_CLOEXEC for entry in some) * 2 >= len(some)
        pointer = first.send_fds(
            program, [restore.made[entry.id] for entry in some], MSG_CMSG_CLOEXEC if on_exec else 0
        )
        numbers = []
        for _ in some:
            while lowest in taken:
                lowest += 1
            numbers.append(lowest)
            lowest += 1
        for entry, number in zip(reversed(some), reversed(numbers), strict=True):
            if number != entry.fd:
                program.call("dup3", number, entry.fd, os.O_CLOEXEC if entry.flags & FD_CLOEXEC else 0)
                program.call("close", number)
                lowest = min(lowest, number)
            elif bool(entry.flags & FD_CLOEXEC) != on_exec:
                program.call("fcntl", number, F_SETFD, entry.flags & FD_CLOEXEC)
            taken.add(entry.fd)
        yield program
        got = received(pointer, len(some), first.arch.word)
        if got != numbers:
            raise RestoreFailed("descriptors came to other numbers than foreseen", f"{got} instead of {numbers}")
        program = Program()


def enter_directories(restore: "Restore", files: Files, programs: dict[int, Program]) -> None:
    """Append working directory, root and umask."""
    seen: set[int] = set()
    ours = file_facts.stat("/")
    for task in restore.tasks.values():
        if task.dead or task.fs is None or task.ids is None or task.ids.fs_id in seen:
            continue
        seen.add(task.ids.fs_id)
        program = programs[task.pid]
        root, cwd = files.ensure(task.fs.root_id), files.ensure(task.fs.cwd_id)
        there = file_facts.fstat(root)
        fds = [cwd] if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) else [cwd, root]
        pointer = task.executor.send_fds(program, fds)
        if len(fds) > 1:
            program.call("fchdir", Load32(pointer + 4))
            program.call("chroot", program.string("."))
        program.call("fchdir", Load32(pointer))
        for i in range(len(fds)):
            program.call("close", Load32(pointer + 4 * i))
        if task.fs.umask is not None:
            program.call("umask", task.fs.umask)


def _free_numbers(used: set[int], count: int, limit: int) -> list[int]:
    """`count` numbers that a table does not use: above all that it does, or else in its gaps."""
    top = max(used, default=-1) + 1
    if top + count <= limit:
        return list(range(top, top + count))
    found = []
    for number in range(min(limit, top) - 1, -1, -1):
        if number not in used:
            found.append(number)
            if len(found) == count:
                return found
    raise Refusal(
        "a table of descriptors in these images", f"it is full up to Torpor's own limit of {limit} open files",
        "raise the limit (ulimit -Hn)", code="no-rights",
    )  # fmt: skip


def _kind(entry: FileEntry) -> FileKind:
    """Who restores an entry.  Raises Refusal for a kind that nobody does."""
    try:
        kind = registry.file_kind_of_type(entry.type)
    except ModuleNotFoundError:
        kind = None
    if kind is None:
        raise Refusal(
            f"file {entry.id} in these images", f"it is {_foreign(entry.type)}, which Torpor does not restore"
        )
    return kind


def _foreign(file_type: int) -> str:
    """What only CRIU's images have, in words."""
    from torpor.resources import words

    if key := registry.REFUSED_TYPES.get(file_type):
        name = words.FILES[key]
        return f"an {name}" if name[0] in "aeiou" else f"a {name}"
    return "an object of a plugin of CRIU's" if file_type == 16 else f"a file of type {file_type}"
