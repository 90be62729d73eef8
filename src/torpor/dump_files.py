# SPDX-License-Identifier: Apache-2.0
"""Open files at dump: every table of descriptors, and each open file description once.

Whether two descriptors share a description only kcmp(2) tells; cheap keys (inode, offset, flags) keep questions few.
"""

import _socket
import os
import stat as st
from time import perf_counter

from torpor import log
from torpor.kernel import fdinfo, file_facts
from torpor.kernel.process import FileSorter, kcmp, pidfd_open_thread, statfs_type
from torpor.kernel.procfs import read_link, unreadable
from torpor.kernel.syscall import call
from torpor.resources import extras, registry, regular
from torpor.resources.context import DumpTask, SeenFile, named
from torpor.resources.security import refuse_locks
from torpor.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee
    from torpor.resources.base import FileKind
    from torpor.resources.context import Dump

FD_CLOEXEC = 1
KCMP_FS = 3

Table = list[tuple[SeenFile, int, int]]  # what, FD_CLOEXEC or 0, number


class Descriptions:
    """The open file descriptions of a dump, and a sorter that knows them apart."""

    def __init__(self) -> None:
        self.sorter = FileSorter()
        self.seen: list[SeenFile] = []


def look(dump: "Dump", task: DumpTask) -> None:
    """A task's tables of descriptors, working directory and root; each open file description is saved once."""
    ids = task.ids
    assert ids is not None
    tables: dict[int, Table] = dump.setdefault("fd tables", {})
    places: dict[int, tuple[int, int]] = dump.setdefault("fs", {})
    if ids.files_id not in tables:
        tables[ids.files_id] = _table(dump, task.leader, task.numbers[task.leader.tid], task.pidfd)
    for thread in task.threads[1:]:
        if thread.tid in task.own_files:
            _thread_table(dump, task, thread, tables)
        if kcmp(task.leader.tid, thread.tid, KCMP_FS):
            refuse_own_directory(dump, task, thread.tid)
    places[task.pid] = _places(dump, task)


def refuse_own_directory(dump: "Dump", task: DumpTask, tid: int) -> None:
    why = f"its thread {tid} has a working directory of its own (unshare(CLONE_FS))"
    dump.refuse(task.refusal(why, "Torpor cannot save that yet; end that thread first"))


def _places(dump: "Dump", task: DumpTask) -> tuple[int, int]:
    """Working directory and root."""
    ids = []
    for name, what in (("cwd", "its working directory"), ("root", "its root directory")):
        path = f"/proc/{task.leader.tid}/{name}"
        where = f"{task.subject}, {what}"
        ids.append(regular.save_path(dump, where, read_link(where, path), path, os.O_RDONLY))
    return ids[0], ids[1]


def _thread_table(dump: "Dump", task: DumpTask, thread: "Tracee", tables: dict[int, Table]) -> None:
    """A thread that gave up sharing its process's table (unshare(CLONE_FILES)); CRIU's images cannot say that."""
    files_id = THREAD_TABLES + thread.tid
    extras.of_thread(task, thread.tid).files_id = files_id
    pidfd = pidfd_open_thread(thread.tid, task.subject)
    try:
        tables[files_id] = _table(dump, thread, task.numbers[thread.tid], pidfd)
    finally:
        os.close(pidfd)


THREAD_TABLES = 1 << 30  # ids of such tables begin here: those of processes are counted from 2


def _table(dump: "Dump", task: "Tracee", numbers: list[int], pidfd: int) -> Table:
    known: Descriptions | None = dump.state.get("descriptions")
    if known is None:
        known = dump.state["descriptions"] = Descriptions()
    directory = os.open(f"/proc/{task.tid}/fd", os.O_RDONLY | os.O_DIRECTORY)
    infos = os.open(f"/proc/{task.tid}/fdinfo", os.O_RDONLY | os.O_DIRECTORY)
    table: Table = []
    try:
        for number in numbers:
            name = str(number)
            stat = file_facts.stat(name, dir_fd=directory)
            info = fdinfo.read_at(infos, number)
            if info.locks:  # of this table, or of the description: seen through every descriptor that can
                where = f"{named(task.tid)}, fd {number}"
                refuse_locks(f"{where} ({read_link(where, name, directory)})", info)
            key = (stat.st_dev, stat.st_ino, info.pos, info.status_flags)
            index = known.sorter.add((task.tid, number), key, number)
            if index == len(known.seen):
                try:
                    link = os.readlink(name, dir_fd=directory)
                except OSError as error:
                    raise unreadable(error, f"{named(task.tid)}, fd {number}") from None
                seen = SeenFile(dump.new_file_id(), task.tid, number, link, stat, info, pidfd)
                known.seen.append(seen)
                _save(dump, seen)
            table.append((known.seen[index], FD_CLOEXEC if info.cloexec else 0, number))
    finally:
        os.close(directory)
        os.close(infos)
    return table


def adopt(dump: "Dump", fd: int) -> int:
    """The id in files.img of a file that is in our hands: it was in flight, and perhaps no task has it.  It must stay
    open until the dump ends."""
    known: Descriptions = dump.state["descriptions"]
    stat = file_facts.fstat(fd)
    pid = os.getpid()
    info = fdinfo.read(pid, fd)
    index = known.sorter.add((pid, fd), (stat.st_dev, stat.st_ino, info.pos, info.status_flags), hint=fd)
    if index == len(known.seen):
        link = os.readlink(f"/proc/self/fd/{fd}")
        seen = SeenFile(dump.new_file_id(), pid, fd, link, stat, info, call("pidfd_open", pid, 0))
        known.seen.append(seen)
        _save(dump, seen)
    return known.seen[index].id


def settle(dump: "Dump") -> None:
    """All tables have been looked at: let the kinds look at what depends on others.

    Those that carry other files first: these may be of kinds that no table has.
    """
    kinds: dict[int, FileKind] = dump.setdefault("file kinds", {})
    _add_terminals(dump, kinds)
    settled: set[int] = set()
    dump.state["adopt"] = adopt
    while left := sorted(kinds.keys() - settled, key=lambda one: not kinds[one].carries):
        settled.add(left[0])
        kinds[left[0]].settle(dump)


def _add_terminals(dump: "Dump", kinds: "dict[int, FileKind]") -> None:
    """A session may have a terminal of which nobody has a descriptor."""
    if any(task.stat.tty_nr and task.sid == task.pid and not task.zombie for task in dump.tasks.values()):
        tty = registry.file_kind("fd:tty")
        assert tty is not None
        kinds[id(tty)] = tty


def kind_of(seen: SeenFile) -> str:
    """The registry key of an open file."""
    if seen.info.flags & os.O_PATH:
        return "fd:path"  # whatever it is, only its name is held
    mode, device = seen.stat.st_mode, seen.stat.st_dev
    if st.S_ISREG(mode) and os.major(device):
        return "fd:regular"  # what is no storage has no device, either
    family = None
    if st.S_ISSOCK(mode):
        # Family, type and protocol are given, or Python would ask for the address, which XDP sockets do not have.
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=os.dup(seen.fd))
        family = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_DOMAIN)
        sock.close()
    file_system = 0
    if st.S_ISREG(mode):
        if device not in _file_systems:
            _file_systems[device] = statfs_type(seen.fd)
        file_system = _file_systems[device]
    return registry.file_key(seen.link, seen.stat, family, file_system)


_file_systems: dict[int, int] = {}  # by device number


def examine(dump: "Dump", seen: SeenFile, key: str = "") -> "FileKind":
    """The resource for an open file.  Raises Refusal for one that cannot be dumped."""
    key = key or kind_of(seen)
    kind = registry.file_kind(key)
    if kind is None:
        raise seen.refusal(*registry.REFUSED[key])
    dump.setdefault("examined kinds", {})[id(kind)] = kind
    kind.examine(seen, dump)
    return kind


def examined(dump: "Dump") -> None:
    """All that is to be examined was: now what depends on others."""
    kinds: dict[int, FileKind] = dump.setdefault("examined kinds", {})
    _add_terminals(dump, kinds)
    for kind in kinds.values():
        kind.examined(dump)


def _save(dump: "Dump", seen: SeenFile) -> None:
    since = perf_counter()
    key = kind_of(seen)
    kind = examine(dump, seen, key)
    entry = kind.save(seen, dump)
    kinds: dict[int, Any] = dump.setdefault("file kinds", {})
    kinds[id(kind)] = kind
    dump.file_entries.append(entry)
    dump.setdefault("fd types", {})[seen.id] = entry.type
    seen.close()
    if dump.costs:
        dump.costs.add(key, since)
    if log.level >= log.DEBUG:
        log.debug(f"{seen.subject}: {key}, file {seen.id}")
