# SPDX-License-Identifier: Apache-2.0
"""What a dump looks at between the freeze and the first program in a task: tasks, what they share, areas."""

import os
import time
from errno import EIO

from torpor import log
from torpor import signals as signal
from torpor.arch import native
from torpor.arch.base import NT_PRSTATUS
from torpor.engine import stops
from torpor.engine.executor import blob
from torpor.engine.stops import Kind
from torpor.engine.waiting import check_cancelled
from torpor.errors import TaskGone
from torpor.images.schema.core import TaskKobjIdsEntry
from torpor.kernel import pagemap, ptrace
from torpor.kernel.maps import Area, read_maps
from torpor.kernel.proc import parse_stat
from torpor.kernel.process import comparison, kcmp, pidfd_open, pidfd_open_thread
from torpor.kernel.procfs import read_all
from torpor.kernel.status import parse_status, parse_thread_status
from torpor.memory import layout, own_vdso
from torpor.memory.areas import check_count, most_areas, zeros_merged
from torpor.memory.dump import AddressSpace
from torpor.model import identity
from torpor.resources import clocks, namespaces, registry
from torpor.resources.context import DumpTask
from torpor.resources.security import refuse_32bit
from torpor.resources.signals import look_at_pending
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.engine.freeze import FrozenTree
    from torpor.engine.tracee import Tracee
    from torpor.resources.context import Dump

STEPPING_S = 1.0  # of a slow machine, whose tree stands still meanwhile
STEPS = 5000  # instructions; a call to the vDSO takes a hundred or two, unless the kernel changes the clock meanwhile
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
    own_vdso.text()
    dump.state["zero pages of KSM"] = zeros_merged()
    if native().tags_memory():
        from torpor.memory import tags  # noqa: F401
    blob(native())
    pagemap.abilities()


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
        leaders = data = read_all(f"/proc/{task.leader.tid}/status")
        refuse_32bit(task)  # of whose registers nothing else is read
        for thread in task.threads:
            thread.capture()
            if thread is not task.leader:
                data = read_all(f"/proc/{pid}/task/{thread.tid}/status")
            task.thread_statuses[thread.tid] = parse_thread_status(data)
        task.status = parse_status(leaders, task.thread_statuses[task.leader.tid])
        _fail_transactions(task)
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
            own_vdso.refuse_changed(task, text, task.leader.read)
    _check_room(dump, spaces)
    if not dump.options.leave_running and native().single_step:
        _leave_vdso(dump, spaces)
    for space in spaces.values():
        check_cancelled()
        space.scan(dump.state["zero pages of KSM"])
    if native().tags_memory():
        from torpor.memory import tags

        tags.read(spaces.values())
    return list(spaces.values())


def _check_room(dump: "Dump", spaces: dict[int, AddressSpace]) -> None:
    if not native().short_stub_layout:
        return
    executors = dict.fromkeys(spaces, 0)
    for task in dump.tasks.values():
        if task.ids is not None and task.ids.vm_id in spaces:
            executors[task.ids.vm_id] += 1 + len(task.own_files)
    spans = [(area.start, area.end) for space in spaces.values() for area in space.task.areas]
    root = next(iter(dump.tasks.values()))
    layout.check_room(root.subject, max(executors.values(), default=1), spans, native())


def _leave_vdso(dump: "Dump", spaces: dict[int, AddressSpace]) -> None:
    """Let threads that were stopped inside a function of the vDSO come to its end: under another kernel they could not
    (`torpor.memory.vdso`).  One instruction at a time, so that they do nothing else.  That takes milliseconds: a tree
    that goes on would notice, and is seldom restored under another kernel."""
    texts = {vm: space.task.areas[space.kinds.index("vdso")] for vm, space in spaces.items() if "vdso" in space.kinds}
    for task in dump.tasks.values():
        text = texts.get(task.ids.vm_id) if task.ids is not None else None
        for thread in task.threads if text is not None and not task.leader.group_stop else ():
            assert text is not None
            inside = _inside(text)
            if inside(thread.general) and not _is_deaf(task, thread):
                log.debug(f"thread {thread.tid} is inside the vDSO: letting it come out of it")
                _step_out(task, thread, inside)


def _inside(text: Area) -> "Callable[[bytes], bool]":
    return lambda general: text.start <= native().pc(general) < text.end


def _fail_transactions(task: DumpTask) -> None:
    """To be stopped has doomed a thread's memory transaction: it fails with the next instruction, as any may, and the
    thread goes on where it has provided for that.  Inside, no program can be run.  (Documentation/arch/powerpc/
    transactional_memory.rst; no machine was at hand to try it.  What is in one still is refused: `Arch.extras`.)"""
    inside = native().in_transaction
    for thread in task.threads if not task.leader.group_stop else ():
        if inside(thread.general) and not _is_deaf(task, thread):
            _step_out(task, thread, inside)


def _is_deaf(task: DumpTask, thread: "Tracee") -> bool:
    """Whether SIGTRAP, which each step brings, is blocked or ignored: the kernel would set it back to its default."""
    assert task.status is not None
    return bool((thread.mask | task.status.ignored) >> (signal.SIGTRAP - 1) & 1)


def _step_out(task: DumpTask, thread: "Tracee", inside: "Callable[[bytes], bool]") -> None:
    """One instruction after the other, until its registers say that it is out."""
    number, left = 0, STEPS  # a signal that came meanwhile is delivered: its handler is out of it, too
    until = time.monotonic() + STEPPING_S
    try:
        while (left > 0 and time.monotonic() < until) or number:
            left -= 1
            ptrace.step(thread.tid, number)
            stop = stops.wait(thread.tid)
            thread.stopped = stop.kind is not Kind.ENDED
            if not thread.stopped:
                raise TaskGone(f"task {thread.tid} was ended by somebody else while Torpor worked on it")
            number = stop.signal if stop.kind is Kind.SIGNAL and not _is_step(stop) else 0
            if stop.kind is Kind.GROUP_STOP:
                thread.group_stop = stop.signal
                break
            if not number and not inside(ptrace.get_regset(thread.tid, NT_PRSTATUS)):
                break
    except OSError as error:
        if error.errno != EIO:
            raise
    thread.forget()
    thread.capture()
    # What was delivered waits no more.
    task.thread_statuses[thread.tid] = parse_thread_status(read_all(f"/proc/{task.pid}/task/{thread.tid}/status"))
    leader = task.leader.tid
    task.status = parse_status(read_all(f"/proc/{leader}/status"), task.thread_statuses[leader])
    look_at_pending(task)


def _is_step(stop: stops.Stop) -> bool:
    return stop.signal == signal.SIGTRAP and ptrace.is_own_trap(stop.tid)


def _table_owners(dump: "Dump", task: DumpTask) -> "list[Tracee]":
    """The leader, and threads with an fd table of their own."""
    alone = [t for t in task.threads[1:] if kcmp(task.leader.tid, t.tid, KCMP_FILES)]
    task.own_files = {thread.tid for thread in alone}
    return [task.leader, *alone]


def _numbers(tid: int) -> list[int]:
    return sorted(map(int, os.listdir(f"/proc/{tid}/fd")))
