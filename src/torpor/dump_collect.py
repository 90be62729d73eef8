# SPDX-License-Identifier: Apache-2.0
"""What a dump does between freeze and thaw: look at everything, ask the tasks, put them back."""

import os
import time
from errno import EIO
from resource import RLIMIT_DATA, RLIMIT_NOFILE

from torpor import dump_files
from torpor import signals as signal
from torpor.arch import native
from torpor.arch.base import NT_PRSTATUS
from torpor.engine import stops
from torpor.engine.descriptors import raise_limit, shortage
from torpor.engine.executor import CannotInstall, Executor, blob
from torpor.engine.program import Program
from torpor.engine.stepper import Stepper
from torpor.engine.stops import Kind
from torpor.engine.team import Answers, ThreadTeam
from torpor.engine.thaw import thaw, thaw_somehow
from torpor.engine.waiting import check_cancelled, forget_cancellation
from torpor.errors import DumpFailed, TaskGone, TorporError
from torpor.images.schema.core import TaskKobjIdsEntry
from torpor.kernel import pagemap, ptrace
from torpor.kernel.maps import Area, read_maps
from torpor.kernel.proc import INFINITY, parse_stat
from torpor.kernel.process import comparison, kcmp, pidfd_open, pidfd_open_thread
from torpor.kernel.procfs import read_all
from torpor.kernel.status import parse_status, parse_thread_status
from torpor.memory import segments as shared
from torpor.memory.areas import SPARE_AREAS, check_count, most_areas
from torpor.memory.dump import AddressSpace
from torpor.model import identity
from torpor.resources import clocks, namespaces, registry
from torpor.resources.context import DumpTask
from torpor.typed import TYPE_CHECKING, Any, Iterable

if TYPE_CHECKING:
    from torpor.engine.freeze import FrozenTree
    from torpor.engine.tracee import Tracee
    from torpor.resources.context import Dump

VDSO_STEPS = 5000  # instructions; a call takes a hundred or two, unless the kernel changes the clock meanwhile
STOPPING_S = 5.0  # until every task has come to its stop
AT_ONCE = 32  # tasks that run programs at the same time
KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND = range(5)
_SHARED = {KCMP_VM: "memory", KCMP_FILES: "descriptors", KCMP_FS: "working directory"}  # handlers: only with memory


def prepare(dump: "Dump") -> None:
    """Before the freeze: import what will be needed, so that nothing is imported while tasks stand still.  (What the
    tree's open files need is found out by survey.foresee.)"""
    from torpor import dump_write  # noqa: F401

    attributes = dump.state["attributes"] = registry.attributes()
    if dump.options.display_stats:
        from torpor.timing import Costs, Timed

        dump.costs = costs = Costs()
        dump.state["attributes"] = [Timed(attribute, costs) for attribute in attributes]
    dump.state["own namespaces"] = namespaces.of(os.getpid())
    dump.state["strict overcommit"] = read_all("/proc/sys/vm/overcommit_memory").startswith(b"2")
    dump.state["most areas"] = most_areas()
    if native().tags_memory():
        from torpor.memory import tags  # noqa: F401
    blob(native())
    pagemap.abilities()


def allow_descriptors(number: int) -> None:
    """Before the freeze: let the engine have the descriptors that so many tasks need.  Raises DumpFailed."""
    short = shortage(number, 2 * min(number, AT_ONCE), raise_limit())
    if short is not None:
        raise DumpFailed(f"cannot dump {number} tasks", *short, code="no-descriptors")


def tasks(dump: "Dump", tree: "FrozenTree") -> None:
    """What /proc shows of every task."""
    for pid, frozen in tree.processes.items():
        task = DumpTask(frozen, parse_stat(read_all(f"/proc/{pid}/stat")))
        dump.tasks[pid] = task
        if task.zombie:
            credentials = parse_status(read_all(f"/proc/{pid}/status")).credentials
            if credentials.uids[0] or credentials.gids[0]:  # waitid(2) tells its parent
                task.process_extras.update(zombie_uid=credentials.uids[0], zombie_gid=credentials.gids[0])
            continue
        data = read_all(f"/proc/{task.leader.tid}/status")
        task.status = parse_status(data)
        for thread in task.threads:
            thread.capture()
            if thread is not task.leader:
                data = read_all(f"/proc/{pid}/task/{thread.tid}/status")
            task.thread_statuses[thread.tid] = parse_thread_status(data)
        # Through the PID of a leader that has ended, nothing can be fetched.
        tid = task.leader.tid
        task.pidfd = pidfd_open(tid) if tid == pid else pidfd_open_thread(tid, task.subject)
    own = dump.state["own namespaces"]
    clocks.forget(dump)
    refuse_ties(dump, dump.tasks)
    for task in dump.tasks.values():
        if task.zombie:
            continue
        namespaces.refuse(dump, task, own)
        namespaces.refuse_threads(dump, task)
        for attribute in dump.state["attributes"]:
            attribute.examine(task, dump)
    _assign_ids(dump)


def refuse_ties(dump: "Dump", tasks: dict[int, DumpTask]) -> None:
    """What ties the tree to processes outside of it.  What it shares with its parent would be its own after a restore;
    with whom else, nobody could find out in little time.  As CRIU: a tree whose session is led from outside (a shell's
    job) is dumped only where that is said."""
    root = next(iter(tasks.values()))
    for kind, what in _SHARED.items():
        if not root.zombie and _is_shared(root.leader.tid, root.stat.ppid, kind):
            why = f"it shares its {what} with process {root.stat.ppid}, which is outside of the tree"
            dump.refuse(root.refusal(why, f"dump both: -t {root.stat.ppid}", code="shared-outside"))
            break
    if root.sid not in tasks and not dump.options.shell_job:
        why = f"its session {root.sid} is led by a process outside of the tree"
        if root.sid and not os.path.exists(f"/proc/{root.sid}"):  # a daemon that has forked once more after setsid()
            why = f"its session {root.sid} was led by a process outside of the tree, which has ended"
        remedy = "say --shell-job, here and at restore, where it joins the session that it is restored from"
        dump.refuse(root.refusal(why, remedy, code="shell-job"))


def _is_shared(tid: int, other: int, kind: int) -> bool:
    try:
        return other > 0 and kcmp(tid, other, kind) == 0
    except OSError:
        return False  # it has ended, or is none of our business


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
            **namespaces.ids() | {"time_ns_id": clocks.number(dump)},
        )


# -- memory -----------------------------------------------------------------------------------------------------------


def areas(dump: "Dump") -> list[AddressSpace]:
    """The areas of each address space, and which pages to store.  Tasks that share one are stored once.

    Also the numbers of all descriptors: from here on, Torpor's own are among them.
    """
    spaces: dict[int, AddressSpace] = {}
    for task in dump.tasks.values():
        if task.zombie or task.ids is None:
            continue
        check_cancelled()
        task.numbers = {thread.tid: _numbers(thread.tid) for thread in _table_owners(dump, task)}
        if task.ids.vm_id in spaces:
            continue
        task.areas = read_maps(task.leader.tid)
        check_count(task, len(task.areas), dump.state["most areas"])
        spaces[task.ids.vm_id] = space = AddressSpace(task)
        if "vdso" in space.kinds:
            text = task.areas[space.kinds.index("vdso")]
            task.leader.use_vdso(text.start, text.end)
    if not dump.options.leave_running and native().single_step:
        _leave_vdso(dump, spaces)
    for space in spaces.values():
        check_cancelled()
        space.scan()
    if native().tags_memory():
        from torpor.memory import tags

        tags.read(spaces.values())
    return list(spaces.values())


def _leave_vdso(dump: "Dump", spaces: dict[int, AddressSpace]) -> None:
    """Let threads that were stopped inside a function of the vDSO come to its end: under another kernel they could not
    (`torpor.memory.vdso`).  One instruction at a time, so that they do nothing else.  That takes milliseconds: a tree
    that goes on would notice, and is seldom restored under another kernel."""
    texts = {vm: space.task.areas[space.kinds.index("vdso")] for vm, space in spaces.items() if "vdso" in space.kinds}
    for task in dump.tasks.values():
        text = texts.get(task.ids.vm_id) if task.ids is not None else None
        for thread in task.threads if text is not None and not task.leader.group_stop else ():
            assert text is not None
            if text.start <= thread.arch.pc(thread.general) < text.end and not _is_deaf(task, thread):
                _step_out(thread, text)


def _is_deaf(task: DumpTask, thread: "Tracee") -> bool:
    """Whether SIGTRAP, which each step brings, is blocked or ignored: the kernel would set it back to its default."""
    assert task.status is not None
    return bool((thread.mask | task.status.ignored) >> (signal.SIGTRAP - 1) & 1)


def _step_out(thread: "Tracee", text: Area) -> None:
    number = 0  # a signal that came meanwhile is delivered: its handler is out of the vDSO, too
    try:
        for _ in range(VDSO_STEPS):
            ptrace.step(thread.tid, number)
            stop = stops.wait(thread.tid)
            thread.stopped = stop.kind is not Kind.ENDED
            if not thread.stopped:
                raise TaskGone(f"task {thread.tid} was ended by somebody else while Torpor worked on it")
            number = stop.signal if stop.kind is Kind.SIGNAL and stop.signal != signal.SIGTRAP else 0
            if stop.kind is Kind.GROUP_STOP:
                thread.group_stop = stop.signal
                break
            if not number and not text.start <= thread.arch.pc(ptrace.get_regset(thread.tid, NT_PRSTATUS)) < text.end:
                break
    except OSError as error:
        if error.errno != EIO:
            raise
    thread.forget()
    thread.capture()


def _table_owners(dump: "Dump", task: DumpTask) -> "list[Tracee]":
    """The leader, and threads with an fd table of their own."""
    alone = [t for t in task.threads[1:] if kcmp(task.leader.tid, t.tid, KCMP_FILES)]
    task.own_files = {thread.tid for thread in alone}
    return [task.leader, *alone]


def _numbers(tid: int) -> list[int]:
    return sorted(map(int, os.listdir(f"/proc/{tid}/fd")))


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
            task.runner = Executor(task.leader, tight=_is_tight(dump, task))
        except CannotInstall:
            task.runner = Stepper(task.leader)


def _is_tight(dump: "Dump", task: DumpTask) -> bool:
    """Whether memory that could be mapped may yet be refused to be written."""
    strict: bool = dump.state["strict overcommit"]
    few = 0 < len(task.areas) < dump.state["most areas"] - 2 * SPARE_AREAS  # none: it lives in another's memory
    return strict or not few or task.limits[RLIMIT_DATA].soft != INFINITY


def _table_full(task: DumpTask) -> bool:
    """Whether the socket pair would not fit into the task's fd table."""
    limit = task.limits[RLIMIT_NOFILE].soft
    return 0 <= limit < len(task.numbers[task.leader.tid]) + 4


class Asked:
    """Answers of all tasks: per PID, and per TID, in the order of the attributes."""

    def __init__(self) -> None:
        self.task: dict[int, list[Any]] = {}
        self._seen: dict[int, list[Any]] = {}
        self._answers: dict[int, tuple[list[Any], Answers | None]] = {}

    def ask(self, task: DumpTask, attributes: list[Any], threads: "Iterable[Tracee]", program: Program) -> list[Any]:
        """Append what threads are asked, and look at them.  Returns the answers-to-be."""
        answers = [attribute.ask_thread(task, program) for attribute in attributes]
        for thread in threads:
            self._seen[thread.tid] = [attribute.look_thread(task, thread) for attribute in attributes]
            self._answers[thread.tid] = answers, None
        return answers

    def answered(self, threads: "Iterable[Tracee]", answers: list[Any], told: Answers) -> None:
        """By a program that these threads have run one and all."""
        for thread in threads:
            self._answers[thread.tid] = answers, told

    def thread(self, tid: int) -> list[Any]:
        """A thread's answers, until another's are asked for."""
        answers, told = self._answers[tid]
        if told is not None:
            told.recall(tid)
        return [seen if answer is None else answer for answer, seen in zip(answers, self._seen[tid], strict=True)]


def gather(dump: "Dump", memory: list[AddressSpace]) -> Asked:
    """Let every task tell what only it can tell, and write its pages; look at everything else meanwhile.

    Some tasks run at a time, all that they have to do in one program each.
    """
    asked = Asked()
    spaces = {space.task.pid: space for space in memory}
    alive = [task for task in dump.tasks.values() if not task.zombie]
    pages_id = 0
    for at in range(0, len(alive), AT_ONCE):
        check_cancelled()
        some = alive[at : at + AT_ONCE]
        writers = []
        for task in some:
            program = _questions(dump, task, asked, spaces.get(task.pid))
            if task.pid in spaces:  # else it lives in another's address space
                pages_id += 1
                writers.append(spaces[task.pid].write(dump, pages_id, program))
            else:
                task.run(program)
        for task in some:
            dump_files.look(dump, task)
            if task.pid in spaces:
                spaces[task.pid].look(dump)
        for writer in writers:
            writer.join()
    dump_files.settle(dump)
    shared.store(dump, pages_id + 1)
    for task in alive:
        if len(task.threads) > 1:
            _ask_threads(task, dump.state["attributes"], asked)
    return asked


def _questions(dump: "Dump", task: DumpTask, asked: Asked, space: AddressSpace | None) -> Program:
    attributes = dump.state["attributes"]
    program = Program()
    if space is not None:
        space.ask(program)
    asked.task[task.pid] = [attribute.ask(task, program) for attribute in attributes]
    asked.ask(task, attributes, [task.leader], program)
    return program


def _ask_threads(task: DumpTask, attributes: list[Any], asked: Asked) -> None:
    together = []
    for thread in task.threads[1:]:
        if isinstance(task.runner, Executor) and thread.tid not in task.own_files:
            together.append(thread)
            continue
        program = Program()  # the team's socket is not in its fd table
        asked.ask(task, attributes, [thread], program)
        stepper = Stepper(thread)
        stepper.run(program)
        stepper.remove()
    if isinstance(task.runner, Executor) and together:
        program = Program()
        answers = asked.ask(task, attributes, together, program)
        task.team = ThreadTeam(task.runner)
        asked.answered(together, answers, task.team.ask(together, program))
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
        for task in dump.tasks.values():
            # One that is stopped already would keep a second SIGSTOP pending.
            if not task.zombie and not task.leader.group_stop:
                os.kill(task.pid, signal.SIGSTOP)
    for task in dump.tasks.values():
        thaw(thread for thread in task.threads if thread.stopped)
        if task.pidfd >= 0:
            os.close(task.pidfd)
            task.pidfd = -1
    if stop:
        _await_stops([thread.tid for task in dump.tasks.values() for thread in task.threads])


def _await_stops(tids: list[int]) -> None:
    """A thread stops when the kernel lets it run next: on a busy machine after we would have said that all is done."""
    deadline = time.monotonic() + STOPPING_S
    for tid in tids:
        try:
            while parse_stat(read_all(f"/proc/{tid}/stat")).state not in "TtZX" and time.monotonic() < deadline:
                time.sleep(0.0005)
        except (OSError, TaskGone):
            pass  # it has ended


def cure_all(dump: "Dump", tree: "FrozenTree") -> None:
    """After a failure: put back whatever can be put back, whatever state it is in."""
    forget_cancellation()
    for task in dump.tasks.values():
        try:
            if task.team is not None:
                task.team.abandon(task.threads[1:])
        except (OSError, TorporError):
            pass
        try:
            if task.runner is not None:
                task.runner.remove()
        except (OSError, TorporError):
            pass
    for process in tree.processes.values():
        thaw_somehow(process.threads.values())
