# SPDX-License-Identifier: Apache-2.0
"""Everything that a dump can write when the tasks go on already (or, if they are to end, just before)."""

import os
from resource import RLIMIT_NOFILE, getrlimit

from torpor import log
from torpor.arch import native
from torpor.engine.descriptors import shortage
from torpor.images import kinds
from torpor.images.directory import write_stats
from torpor.images.message import Encoded
from torpor.images.pages import PAGE_SIZE
from torpor.images.schema.core import CoreEntry, TaskCoreEntry, TaskKobjIdsEntry, ThreadCoreEntry
from torpor.images.schema.fdinfo import FdinfoEntry
from torpor.images.schema.fs import FsEntry
from torpor.images.schema.inventory import InventoryEntry, PluginsEntry
from torpor.images.schema.pstree import PstreeEntry
from torpor.images.schema.seccomp import SeccompEntry
from torpor.images.schema.stats import DumpStatsEntry, StatsEntry
from torpor.images.schema.torpor import AreaNameEntry, RegisterSetEntry, TaskExtraEntry, TorporTaskEntry
from torpor.memory import segments
from torpor.resources import clocks, extras, in_memory, namespaces, written
from torpor.resources.description import in_order, write_extras
from torpor.signals import SIGCHLD
from torpor.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torpor.dump_ask import Asked
    from torpor.dump_files import Table
    from torpor.memory.dump import AddressSpace
    from torpor.resources.context import Dump, DumpTask

IMG_V1_1 = 2
ALIVE, DEAD, STOPPED = 1, 2, 3
CORE_DUMPED = 0x80  # in a wait status


def everything(dump: "Dump", asked: "Asked", memory: "list[AddressSpace]") -> None:
    """All images but pages (written already), the inventory and the statistics."""
    spaces = {space.task.pid: space for space in memory}
    images = dump.images
    for one in memory:
        one.forget_droppable()
    images.start_writing()  # the pages, while the rest is put together
    for task in dump.tasks.values():
        _cores(dump, task, asked)
        if task.stat.exit_signal != SIGCHLD and task.ppid in dump.tasks:
            task.process_extras["exit_signal"] = task.stat.exit_signal
        if task.zombie:
            if task.process_extras:
                _extras(dump, task, None)
            if task.stat.exit_code & CORE_DUMPED:
                log.warning(f"{task.subject} is a zombie that has dumped core: restored, its status will not say so")
            continue
        assert task.ids is not None
        images.write(kinds.IDS, [task.ids], task.pid)
        space = spaces.get(task.pid)
        if space is not None:  # else the task lives in another's address space, which its vm_id tells
            images.write(kinds.MM, [space.entry(dump)], task.pid)
            assert space.writer is not None
            space.writer.finish()
        _extras(dump, task, space)
        images.write(kinds.FS, [_fs(dump, task)], task.pid)
    images.write(
        kinds.PSTREE,
        [
            PstreeEntry(
                pid=task.pid,
                ppid=task.ppid,
                pgid=task.pgid,
                sid=task.sid,
                threads=list(dict.fromkeys([task.pid, *(t.tid for t in task.threads)])),
            )
            for task in dump.tasks.values()
        ],
    )
    types = dump.state.get("fd types", {})
    numbers: dict[int, int] = {}
    for files_id, table in dump.state["fd tables"].items():
        numbers[files_id] = len(table)
        images.write(kinds.FDINFO, _descriptors(table, types), files_id, even_empty=True)  # a missing one is noticed
    for kind in dump.state.get("file kinds", {}).values():
        kind.late(dump)
    write_extras(dump)
    segments.save_inodes(dump)
    images.write(kinds.FILES, in_order(dump.file_entries))
    _foresee_restore(dump)
    in_memory.warn(dump)
    images.write(kinds.SECCOMP, [SeccompEntry()])
    images.remove(kinds.STATS, "dump")  # an earlier dump's; ours may go into another directory
    clocks.save(dump)
    if dump.options.cpu_cap or images.has(kinds.CPUINFO) or images.has(kinds.TORPOR_CPU):
        from torpor import cpuinfo

        cpuinfo.save(dump)


def _foresee_restore(dump: "Dump") -> None:
    """Files are dumped one after another, and restored all at once: say so where this machine lets nobody do that."""
    short = shortage(len(dump.tasks), len(dump.file_entries), getrlimit(RLIMIT_NOFILE)[1])
    if short is not None:
        dump.warn(f"a restore of it under this limit will be refused: {'; '.join(short)}")


def _descriptors(table: "Table", types: dict[int, int]) -> list[Any]:
    """A table's entries, as Encoded: what is the same for thousands of descriptors is encoded once."""
    sorts: dict[tuple[int, int], bytes] = {}
    write_id, write_number = FdinfoEntry.writer("id"), FdinfoEntry.writer("fd")
    entries = []
    for seen, flags, number in table:
        sort = flags, types[seen.id]
        if sort not in sorts:
            sorts[sort] = FdinfoEntry.part(flags=flags, type=types[seen.id])
        entries.append(Encoded(write_id(seen.id) + sorts[sort] + write_number(number)))
    return entries


def _cores(dump: "Dump", task: "DumpTask", asked: "Asked") -> None:
    attributes = dump.state["attributes"]
    stat = task.stat
    tc = TaskCoreEntry(
        task_state=DEAD if task.zombie else STOPPED if task.leader.group_stop else ALIVE,
        exit_code=stat.exit_code if task.zombie else 0,
        personality=0,
        flags=stat.flags,
        blk_sigset=0,
        comm=os.fsdecode(stat.comm),
    )
    if task.zombie:
        dump.images.write(kinds.CORE, [CoreEntry(mtype=native().march, tc=tc)], task.pid)
        return
    if task.leader.group_stop:
        tc.stop_signo = task.leader.group_stop
    process = CoreEntry(mtype=native().march, tc=tc, thread_core=_no_thread())
    for attribute, answer in zip(attributes, asked.task[task.pid], strict=True):
        attribute.save(task, answer, process)
    if task.leader.tid != task.pid:
        # The leader has ended while other threads live: its core has all of the process, and no thread.
        tc.exit_code = stat.exit_code
        process.thread_core = None
        dump.images.write(kinds.CORE, [process], task.pid)
    for thread in task.threads:
        core = process if thread.tid == task.pid else CoreEntry(mtype=0, thread_core=_no_thread())
        assert core.thread_core is not None
        if thread.tid == task.pid:
            tc.blk_sigset = thread.mask
        else:
            core.thread_core.blk_sigset = thread.mask
        for attribute, answer in zip(asked.of_threads, asked.thread(thread.tid), strict=True):
            attribute.save_thread(task, thread, answer, core)
        registers = thread.registers()
        thread.arch.to_core(core, registers, task.clear_child_tid.get(thread.tid, 0))
        for which, data in thread.arch.extras(registers).items():
            extras.of_thread(task, thread.tid).registers.append(RegisterSetEntry(type=which, data=data))
        if (interruption := thread.interruption()) is not None:
            own = extras.of_thread(task, thread.tid)
            own.interrupted, own.call = interruption
        dump.images.write(kinds.CORE, [core], thread.tid)


def _no_thread() -> ThreadCoreEntry:
    return ThreadCoreEntry(futex_rla=0, futex_rla_len=0)


def _fs(dump: "Dump", task: "DumpTask") -> FsEntry:
    assert task.status is not None
    cwd, root = dump.state["fs"][task.pid]
    return FsEntry(cwd_id=cwd, root_id=root, umask=task.status.umask)


def _extras(dump: "Dump", task: "DumpTask", space: "AddressSpace | None") -> None:
    """torpor-PID.img."""
    dump.images.write(
        kinds.TORPOR_TASK,
        [
            TorporTaskEntry(
                names=[AreaNameEntry(start=start, name=name) for start, name in (space.names if space else {}).items()],
                threads=list(task.thread_extras.values()),
                sealed=space.sealed if space else [],
                guarded=space.guarded if space else [],
                tagged=space.tagged if space else [],
                tags=space.save_tags(dump.images) if space else [],
                accounted=space.accounted if space else [],
                lock_on_fault=space.lock_on_fault if space else [],
                lock_future=(space.lock_future or None) if space else None,
                process=TaskExtraEntry(**task.process_extras),
            )
        ],
        task.pid,
    )


def stats(dump: "Dump", phases: dict[str, float], frozen: float, memory: "list[AddressSpace]") -> None:
    """stats-dump; times in µs.  Nothing depends on it: the dump has succeeded already."""
    pages = sum(space.bytes for space in memory) // PAGE_SIZE
    shared = segments.bytes_stored(dump) // PAGE_SIZE

    def micros(seconds: float) -> int:
        return min(int(seconds * 1e6), 0xFFFFFFFF)

    entry = DumpStatsEntry(
        freezing_time=micros(phases["freeze"]),
        frozen_time=micros(frozen),
        memdump_time=micros(phases["areas"] + phases["gather"]),
        memwrite_time=micros(phases["gather"]),
        pages_scanned=pages,
        pages_skipped_parent=0,
        pages_written=pages,
        pages_lazy=0,
        shpages_scanned=shared,
        shpages_skipped_parent=0,
        shpages_written=shared,
    )
    write_stats(dump.options.work_directory, StatsEntry(dump=entry))


def finish(dump: "Dump") -> None:
    """fsync everything, inventory.img last.  Also what the tree has written to files (`torpor.resources.written`), and
    the directories in which a file was given a name that the restore needs: all that must be there after a power
    failure, too."""
    for directory in sorted(dump.state.get("directories changed", ())):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    dump.images.finish(
        InventoryEntry(
            img_version=IMG_V1_1,
            fdinfo_per_id=True,
            root_ids=TaskKobjIdsEntry(vm_id=1, files_id=1, fs_id=1, sighand_id=1, **namespaces.ids()),
            ns_per_id=True,
            root_cg_set=1,
            lsmtype=0,
            tcp_close=True if dump.options.tcp_close else None,
            network_lock_method=2,
            plugins_entry=PluginsEntry(),
            dump_criu_run_id=_uuid(),
        ),
        written.to_bring(dump),
    )


def _uuid() -> str:
    """A random UUID (RFC 4122, version 4); the module uuid takes longer to import than a small tree is frozen."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
