# SPDX-License-Identifier: Apache-2.0
"""Reading and checking images before anything is created: what comes from here can be trusted to make sense."""

from torpor.arch import ARCHITECTURES, native
from torpor.engine.descriptors import shortage
from torpor.engine.waiting import check_cancelled
from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.schema.constants import TaskState
from torpor.model.restore_plan import Plan, Spec, make_plan
from torpor.resources import clocks, extras, pids, tree
from torpor.resources.context import RestoreTask
from torpor.resources.fdtable import thread_tables
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.arch.base import Arch, Registers
    from torpor.images.schema.core import CoreEntry, TaskKobjIdsEntry
    from torpor.images.schema.inventory import InventoryEntry
    from torpor.resources.context import Restore

_NAMESPACES = {
    "pid": "process IDs", "net": "network", "ipc": "System V IPC", "uts": "host name", "mnt": "mounts", "user": "users",
    "cgroup": "cgroups",
}  # fmt: skip
MAX_TASKS = 1 << 16
MAX_THREADS = 1 << 16


def load(restore: "Restore") -> Plan:
    """Fill in restore.tasks and restore.files; returns the plan of births.  Raises ImageError, Refusal."""
    images = restore.images
    inventory = images.inventory()
    _check_inventory(restore, inventory)
    entries = images.entries(kinds.PSTREE)
    if len(entries) > MAX_TASKS:
        raise ImageError("pstree.img is mangled", f"it has {len(entries)} tasks")
    seen: set[int] = set()
    for entry in entries:
        check_cancelled()
        task = RestoreTask(entry.pid, entry.ppid, entry.pgid, entry.sid, list(entry.threads))
        twice = ImageError("pstree.img is mangled", f"a task or thread of {entry.pid} is there twice")
        if entry.pid in seen:  # now, or the same core would be read as often as it is named
            raise twice
        task.restore = restore
        task.cores[entry.pid] = images.one(kinds.CORE, entry.pid)
        _check_architecture(task.core)  # first: to another machine all else looks mangled
        tc = task.core.tc
        if tc is None or tc.task_state not in (TaskState.ALIVE, TaskState.DEAD, TaskState.STOPPED, TaskState.ZOMBIE):
            raise ImageError(f"{kinds.CORE.file_name(entry.pid)} is mangled", "it does not say how the task was")
        if task.dead:
            task.threads = [entry.pid]  # CRIU says any number of a zombie's only thread
        numbers = {entry.pid, *task.threads}
        if numbers & seen or len(set(task.threads)) < len(task.threads):
            raise twice
        if len(task.threads) > MAX_THREADS:
            raise ImageError("pstree.img is mangled", f"task {entry.pid} has {len(task.threads)} threads")
        seen |= numbers
        restore.tasks[entry.pid] = task
        if not task.dead:
            _load_living(restore, task, inventory)
    specs = [_spec(task) for task in restore.tasks.values()]
    if specs:
        specs[0] = specs[0]._replace(ppid=0)
    plan = make_plan(specs)
    _check_session(restore, plan)
    with restore.trying():
        clocks.check(restore)
    with restore.trying():
        tree.check(restore)
    for file in images.entries(kinds.FILES):
        if file.id in restore.files:
            raise ImageError("files.img is mangled", f"file {file.id} is there twice")
        restore.files[file.id] = file
    return plan


def _check_inventory(restore: "Restore", inventory: "InventoryEntry") -> None:
    images, options = restore.images, restore.options
    if inventory.pre_dump_mode is not None:
        raise ImageError("these images are of a pre-dump", "they hold memory only", "give the last, whole dump")
    if not inventory.fdinfo_per_id:
        raise ImageError("these images are too old", "their descriptors are numbered by task")
    if inventory.tcp_close and not options.tcp_close:
        why = "they were made with --tcp-close: their connections come back closed"
        restore.problem(Refusal("these images", why, "say --tcp-close here, too", code="tcp-close"))
    if inventory.allow_uprobes:
        restore.problem(Refusal("these images", "the tree had uprobes, which Torpor does not restore"))
    if images.exists(kinds.FILE_LOCKS):
        why = "there are file locks in them, which Torpor does not restore yet"
        restore.problem(Refusal("these images", why, code="file-lock"))


def _load_living(restore: "Restore", task: RestoreTask, inventory: "InventoryEntry") -> None:
    images = restore.images
    if task.pid not in task.threads:
        raise ImageError("pstree.img is mangled", f"task {task.pid} has no main thread")
    task.threads.sort(key=lambda tid: tid != task.pid)
    for tid in task.threads[1:]:
        task.cores[tid] = images.one(kinds.CORE, tid)
        _check_architecture(task.cores[tid])
    for tid, core in task.cores.items():
        if core.thread_core is None and (tid != task.pid or len(task.threads) == 1):
            raise ImageError(f"{kinds.CORE.file_name(tid)} is mangled", "it says nothing of the thread")
    task.ids = images.find(kinds.IDS, task.pid) or task.core.ids
    if task.ids is None:
        raise ImageError(f"{kinds.IDS.file_name(task.pid)} is missing", code="missing-image")
    if 0 in (task.ids.vm_id, task.ids.files_id, task.ids.fs_id, task.ids.sighand_id):
        raise ImageError(f"{kinds.IDS.file_name(task.pid)} is mangled", "a number in it is 0")
    _check_namespaces(task, task.ids, inventory.root_ids)
    task.fs = images.one(kinds.FS, task.pid)


def _check_architecture(core: "CoreEntry") -> None:
    if core.mtype != native().march:
        theirs = ARCHITECTURES.get(core.mtype, f"number {core.mtype}")
        raise Refusal(
            "these images", f"they are of another architecture ({theirs}) than this machine's {native().name}",
            "restore them on a machine like the one they come from", code="foreign-architecture",
        )  # fmt: skip


def _check_namespaces(task: RestoreTask, ids: "TaskKobjIdsEntry", ours: "TaskKobjIdsEntry | None") -> None:
    for name, what in _NAMESPACES.items():
        number = getattr(ids, f"{name}_ns_id")
        if number and ours is not None and number != getattr(ours, f"{name}_ns_id"):
            raise task.refusal(
                f"it was in a namespace of its own ({what})", "Torpor restores only trees in its own namespaces, so far"
            )


def _spec(task: RestoreTask) -> Spec:
    ids = task.ids
    shared = (ids.vm_id, ids.files_id, ids.fs_id, ids.sighand_id) if ids is not None else (0, 0, 0, 0)
    threads = tuple(task.threads) if not task.dead else ()
    return Spec(task.pid, task.ppid, task.pgid, task.sid, task.dead, shared, threads)


def _check_session(restore: "Restore", plan: Plan) -> None:
    root = restore.tasks[plan.root]
    if root.sid not in restore.tasks and not restore.options.shell_job:
        why = f"its session {root.sid} is led by a process outside of the tree"
        remedy = "say --shell-job, and it joins the session that you restore it from"
        restore.problem(root.refusal(why, remedy, code="shell-job"))


def executor_areas(restore: "Restore") -> int:
    """How many executors at most will live in one address space: of tasks that share it, and of threads with a table of
    descriptors of their own."""
    counts: dict[int, int] = {}
    for task in restore.tasks.values():
        if task.ids is not None:
            more = 1 + len(thread_tables(restore, task))
            counts[task.ids.vm_id] = counts.get(task.ids.vm_id, 0) + more
    return max(counts.values(), default=1)


def check_pids(restore: "Restore", plan: Plan) -> None:
    """Refuse where a PID that has to be given is in use, or too great."""
    wanted = [tid for task in restore.tasks.values() for tid in ([task.pid] if task.dead else task.threads)]
    wanted += [pid for pid in plan.helpers if pid > 0]
    for refusal in (*pids.too_great(wanted), *pids.taken(wanted)):
        restore.problem(refusal)


def registers(restore: "Restore", arch: "Arch", template: "Registers") -> dict[int, "Registers"]:
    """All threads' registers, for this CPU.  Raises ImageError, Refusal."""
    if arch.signs_pointers:
        _check_signing(restore, arch)
    found = {}
    for task in restore.tasks.values():
        if task.dead:
            continue
        for tid, core in task.cores.items():
            if tid != task.pid or not task.leader_ended:
                found[tid], _ = arch.from_core(core, template)
                if arch.extra:
                    extra = extras.load(restore, task.pid).threads.get(tid)
                    stored = {entry.type: entry.data for entry in extra.registers} if extra is not None else {}
                    found[tid] = arch.with_extras(found[tid], stored, template)
    return found


def _check_signing(restore: "Restore", arch: "Arch") -> None:
    """Nobody can see whether signed pointers lie in memory, but on a CPU that signs, return addresses do.  In which
    bits is a matter of the kernel, too: of how long its addresses are."""
    host = restore.images.find(kinds.TORPOR_HOST)
    theirs = host.signing if host is not None else None
    ours = arch.signing()
    if theirs and theirs != ours:
        restore.problem(Refusal(
            "these images", f"they come from a machine that signs pointers by {theirs}, and this one does by "
            f"{ours or 'nothing that it tells'}: no signed return address would be right any more",
            "restore them on such a CPU, under a kernel with addresses as long (CONFIG_ARM64_VA_BITS)",
            code="cpu-feature",
        ))  # fmt: skip


def check_descriptors(restore: "Restore", plan: Plan, limit: int) -> None:
    """Refuse where the engine could not hold what so many tasks and files need; `limit`: the hard one."""
    threads = sum(len(thread_tables(restore, task)) for task in restore.tasks.values() if not task.dead)
    short = shortage(len(restore.tasks) + len(plan.helpers) + threads, len(restore.files), limit)
    if short is not None:
        restore.problem(Refusal("the tree in these images", *short, code="no-descriptors"))
