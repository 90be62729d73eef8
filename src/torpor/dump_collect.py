# SPDX-License-Identifier: Apache-2.0
"""What a dump does between freeze and thaw: look at everything, ask the tasks, put them back."""

import os
from typing import TYPE_CHECKING, Any

from torpor.arch import native
from torpor.engine.executor import CannotInstall, Executor, blob
from torpor.engine.program import Program
from torpor.engine.stepper import Stepper
from torpor.engine.team import ThreadTeam
from torpor.engine.waiting import check_cancelled, forget_cancellation
from torpor.errors import TorporError
from torpor.images.schema.core import TaskKobjIdsEntry
from torpor.kernel import fdinfo, pagemap
from torpor.kernel.maps import read_maps
from torpor.kernel.proc import parse_stat
from torpor.kernel.process import comparison
from torpor.kernel.procfs import read_all
from torpor.kernel.status import parse_status, parse_thread_status
from torpor.kernel.syscall import call
from torpor.memory import segments as shared
from torpor.memory.dump import AddressSpace, store
from torpor.model import identity
from torpor.resources import extras, registry, regular
from torpor.resources.context import DumpTask, SeenFile

if TYPE_CHECKING:
    from torpor.engine.freeze import FrozenTree
    from torpor.engine.tracee import Tracee
    from torpor.resources.context import Dump

FD_CLOEXEC = 1
PIDFD_THREAD = os.O_EXCL
KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND = range(5)
NAMESPACES = ("pid", "net", "ipc", "uts", "time", "mnt", "user", "cgroup")  # in the order of their numbers, from 1
_REMEDY = {
    "pid": "run Torpor inside that PID namespace",
    "net": "run Torpor inside that network namespace",
}


def prepare(dump: "Dump") -> None:
    """Before the freeze: import what will be needed, so that nothing is imported while tasks stand still."""
    from torpor import dump_write  # noqa: F401

    dump.state["attributes"] = registry.attributes()
    blob(native())
    pagemap.abilities()
    for module in set(registry.FILES.values()):
        try:
            registry.import_resource(module)
        except ModuleNotFoundError:
            pass


def tasks(dump: "Dump", tree: "FrozenTree") -> None:
    """What /proc shows of every task."""
    for pid, frozen in tree.processes.items():
        task = DumpTask(frozen, parse_stat(read_all(f"/proc/{pid}/stat")))
        dump.tasks[pid] = task
        if task.zombie:
            continue
        task.status = parse_status(read_all(f"/proc/{pid}/status"))
        for thread in task.threads:
            thread.capture()
            task.thread_statuses[thread.tid] = parse_thread_status(read_all(f"/proc/{pid}/task/{thread.tid}/status"))
        task.pidfd = call("pidfd_open", pid, 0)
    own = _namespaces(os.getpid())
    for task in dump.tasks.values():
        if task.zombie:
            continue
        theirs = _namespaces(task.leader.tid)
        for name, inode in theirs.items():
            if own.get(name) != inode:
                raise task.refusal(
                    f"it lives in another {name} namespace than Torpor",
                    _REMEDY.get(name, f"run Torpor inside that {name} namespace"),
                    code="namespace",
                )
        for attribute in dump.state["attributes"]:
            attribute.examine(task, dump)
    _assign_ids(dump)


def _namespaces(tid: int) -> dict[str, int]:
    found = {}
    for name in NAMESPACES:
        try:
            found[name] = os.stat(f"/proc/{tid}/ns/{name}").st_ino
        except FileNotFoundError:
            pass
    return found


def _assign_ids(dump: "Dump") -> None:
    """Number what tasks share (kcmp): equal number, same object.  1 is Torpor's own."""
    alive = [task for task in dump.tasks.values() if not task.zombie]
    kin = []
    for task in alive:
        stat, status = task.stat, task.status
        assert status is not None
        keys = (stat.startstack, stat.start_brk, stat.vsize), None, status.umask, (status.ignored, status.caught)
        parent = dump.tasks.get(task.ppid)
        relative = task.leader.tid if parent is None or parent.zombie else parent.leader.tid
        kin.append(identity.Kin(task.leader.tid, relative, True, keys))
    comparisons = identity.Comparisons(*(comparison(kind) for kind in (KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND)))
    numbers = identity.assign(kin, comparisons)
    for task in alive:
        ids = numbers[task.leader.tid]
        task.ids = TaskKobjIdsEntry(
            vm_id=ids.vm + 1,
            files_id=ids.files + 1,
            fs_id=ids.fs + 1,
            sighand_id=ids.sighand + 1,
            **namespace_ids(),
        )


def namespace_ids() -> dict[str, int]:
    """All tasks live in Torpor's own namespaces: 1 to 8, as in the inventory's root_ids."""
    return {f"{name}_ns_id": number for number, name in enumerate(NAMESPACES, 1)}


# -- open files -------------------------------------------------------------------------------------------------------


def files(dump: "Dump") -> None:
    """Every open file description once, and each table of descriptors: dump.state["fd tables"]."""
    tables: dict[int, Table] = {}
    known: dict[tuple[Any, ...], list[SeenFile]] = {}
    fs: dict[int, tuple[int, int]] = {}
    alive = [(task, task.ids) for task in dump.tasks.values() if not task.zombie and task.ids is not None]
    next_id = max((ids.files_id for _, ids in alive), default=1) + 1
    for task, ids in alive:
        check_cancelled()
        if ids.files_id not in tables:
            tables[ids.files_id] = _table(dump, task.leader, task.pidfd, known)
        for thread in task.threads[1:]:
            if call("kcmp", task.leader.tid, thread.tid, KCMP_FILES, 0, 0):
                tables[next_id] = _thread_table(dump, task, thread, next_id, known)
                next_id += 1
            if call("kcmp", task.leader.tid, thread.tid, KCMP_FS, 0, 0):
                raise task.refusal(
                    f"its thread {thread.tid} has a working directory of its own (unshare(CLONE_FS))",
                    "Torpor cannot save that yet; end that thread first",
                )
        fs[task.pid] = _places(dump, task)
    dump.state["fd tables"] = tables
    dump.state["fs"] = fs


def _places(dump: "Dump", task: DumpTask) -> tuple[int, int]:
    """Working directory and root."""
    ids = []
    for name, what in (("cwd", "its working directory"), ("root", "its root directory")):
        path = f"/proc/{task.leader.tid}/{name}"
        ids.append(regular.save_path(dump, f"{task.subject}, {what}", os.readlink(path), path, os.O_RDONLY))
    return ids[0], ids[1]


Known = dict[tuple[Any, ...], list[SeenFile]]
Table = list[tuple[SeenFile, int, int]]  # what, FD_CLOEXEC or 0, number


def _thread_table(dump: "Dump", task: DumpTask, thread: "Tracee", files_id: int, known: Known) -> Table:
    """A thread that gave up sharing its process's table (unshare(CLONE_FILES)); CRIU's images cannot say that."""
    task.own_files.add(thread.tid)
    extras.of_thread(task, thread.tid).files_id = files_id
    pidfd = call("pidfd_open", thread.tid, PIDFD_THREAD)
    try:
        return _table(dump, thread, pidfd, known)
    finally:
        os.close(pidfd)


def _table(dump: "Dump", task: "Tracee", pidfd: int, known: Known) -> Table:
    directory = os.open(f"/proc/{task.tid}/fd", os.O_RDONLY | os.O_DIRECTORY)
    table: Table = []
    try:
        for number in sorted(map(int, os.listdir(directory))):
            name = str(number)
            link = os.readlink(name, dir_fd=directory)
            stat = os.stat(name, dir_fd=directory)
            info = fdinfo.read(task.tid, number)
            key = (stat.st_dev, stat.st_ino, info.pos, info.status_flags)
            seen = next((s for s in known.get(key, ()) if _same(s, task, number)), None)
            if seen is None:
                seen = SeenFile(dump.new_file_id(), task.tid, number, link, stat, info, pidfd)
                known.setdefault(key, []).append(seen)
                _save(dump, seen)
            table.append((seen, FD_CLOEXEC if info.cloexec else 0, number))
    finally:
        os.close(directory)
    return table


def _same(seen: SeenFile, task: "Tracee", number: int) -> bool:
    return call("kcmp", seen.pid, task.tid, KCMP_FILE, seen.number, number) == 0


def _save(dump: "Dump", seen: SeenFile) -> None:
    import stat as st

    family = None
    if st.S_ISSOCK(seen.stat.st_mode):
        import socket

        family = int.from_bytes(_getsockopt(seen.fd, socket.SOL_SOCKET, socket.SO_DOMAIN), "little")
    key = registry.file_key(seen.link, seen.stat, family)
    kind = registry.file_kind(key)
    if kind is None:
        raise seen.refusal(*registry.REFUSED[key])
    kind.examine(seen, dump)
    entry = kind.save(seen, dump)
    seen_kinds: dict[int, Any] = dump.setdefault("file kinds", {})
    seen_kinds[id(kind)] = kind
    dump.file_entries.append(entry)
    dump.setdefault("fd types", {})[seen.id] = entry.type
    seen.close()


def _getsockopt(fd: int, level: int, option: int) -> bytes:
    import socket

    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockopt(level, option, 4)


# -- memory -----------------------------------------------------------------------------------------------------------


def areas(dump: "Dump") -> list[AddressSpace]:
    """The areas of each address space, and which pages to store.  Tasks that share one are stored once."""
    spaces: dict[int, AddressSpace] = {}
    for task in dump.tasks.values():
        if task.zombie or task.ids is None or task.ids.vm_id in spaces:
            continue
        check_cancelled()
        task.areas = read_maps(task.leader.tid)
        space = AddressSpace(task)
        space.look(dump)
        space.scan()
        spaces[task.ids.vm_id] = space
    return list(spaces.values())


def memory(dump: "Dump", spaces: list[AddressSpace]) -> None:
    """Write all pages: of address spaces, then of shared segments."""
    shared.store(dump, store(dump, spaces))


# -- running programs -------------------------------------------------------------------------------------------------


def install(dump: "Dump") -> None:
    """Bring an executor into every task that is alive."""
    for task in dump.tasks.values():
        if task.zombie:
            continue
        check_cancelled()
        try:
            if task.leader.tid != task.pid or _table_full(task):
                raise CannotInstall
            task.runner = Executor(task.leader, guardian=dump.state.get("guardian"))
        except CannotInstall:
            task.runner = Stepper(task.leader)


def _table_full(task: DumpTask) -> bool:
    """Whether the socket pair would not fit into the task's fd table."""
    import resource

    from torpor.kernel.proc import parse_limits

    limit = parse_limits(read_all(f"/proc/{task.pid}/limits"))[resource.RLIMIT_NOFILE].soft
    return 0 <= limit < len(os.listdir(f"/proc/{task.pid}/fd")) + 4


Answers = dict[int, list[tuple[Any, Any]]]


class Asked:
    """Answers of all tasks: per PID, and per TID, in the order of the attributes."""

    def __init__(self) -> None:
        self.task: dict[int, list[Any]] = {}
        self.thread: dict[int, list[Any]] = {}


def ask(dump: "Dump", memory: list[AddressSpace]) -> Asked:
    """Run what the attributes have to ask, in every task and thread."""
    attributes = dump.state["attributes"]
    asked = Asked()
    running = []
    spaces = {space.task.pid: space for space in memory}
    for task in dump.tasks.values():
        if task.zombie or task.runner is None:
            continue
        check_cancelled()
        program = Program()
        if task.pid in spaces:  # else it lives in another's
            spaces[task.pid].ask(program)
        asked.task[task.pid] = [attribute.ask(task, program) for attribute in attributes]
        asked.thread[task.leader.tid] = [attribute.ask_thread(task, task.leader, program) for attribute in attributes]
        if isinstance(task.runner, Executor):
            batches = list(task.runner.batches(program))
            if len(batches) == 1:
                task.runner.start(batches[0])
                running.append(task.runner)
                continue
        task.run(program)
    for runner in running:
        runner.finish()
    for task in dump.tasks.values():
        if len(task.threads) > 1:
            _ask_threads(task, attributes, asked)
    return asked


def _ask_threads(task: DumpTask, attributes: list[Any], asked: Asked) -> None:
    programs = {}
    for thread in task.threads[1:]:
        programs[thread] = program = Program()
        asked.thread[thread.tid] = [attribute.ask_thread(task, thread, program) for attribute in attributes]
    alone = [t for t in programs if t.tid in task.own_files or not isinstance(task.runner, Executor)]
    for thread in alone:  # the team's socket is not in their fd tables
        stepper = Stepper(thread)
        stepper.run(programs.pop(thread))
        stepper.remove()
    if isinstance(task.runner, Executor):
        task.team = ThreadTeam(task.runner)
        task.team.run(programs)
        task.team.close()
        task.team = None


# -- putting back -----------------------------------------------------------------------------------------------------


def cure(dump: "Dump", stop: bool = False) -> None:
    """Take the executors out and let every task go on as it was (or stay stopped, by SIGSTOP)."""
    forget_cancellation()
    for task in dump.tasks.values():
        if task.runner is not None:
            task.runner.remove()
            task.runner = None
    if stop:
        import signal

        for task in dump.tasks.values():
            if not task.zombie:
                os.kill(task.pid, signal.SIGSTOP)
    for task in dump.tasks.values():
        for thread in reversed(task.threads):
            if thread.stopped:
                thread.let_go()
        if task.pidfd >= 0:
            os.close(task.pidfd)
            task.pidfd = -1


def cure_all(dump: "Dump", tree: "FrozenTree") -> None:
    """After a failure: put back whatever can be put back, whatever state it is in."""
    forget_cancellation()
    for task in dump.tasks.values():
        for remove in (getattr(task.team, "abandon", None), getattr(task.runner, "remove", None)):
            if remove is not None:
                try:
                    remove()
                except (OSError, TorporError):
                    pass
    for process in tree.processes.values():
        for thread in reversed(process.threads.values()):
            try:
                thread.stop_program()
                thread.let_go()
            except (OSError, TorporError):
                pass
