# SPDX-License-Identifier: Apache-2.0
"""How threads are scheduled: nice, policy and priority, I/O priority, CPU affinity.  All read and set from outside.

CRIU's images hold policy (with SCHED_RESET_ON_FORK), priority and nice; the rest goes into Torpor's own image.
A restored task starts as Torpor is: only what differs is set.  The nice value of a real-time thread sleeps until it is
one no more: sched_setattr(2) neither shows nor sets it.  Nor is a slice of its own to be seen then.  The slice of a
thread that has not asked for one (Linux 6.12) is the system's, which is Torpor's as well.  CPUs are in images only
where they were not all that the machine had: else a tree would stay on these for ever, on a machine with more.
"""

import os

from torpor.errors import ImageError, KernelError, Refusal
from torpor.kernel import sched
from torpor.kernel.sched import SchedAttr
from torpor.resources import extras, lacking, own
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry, ThreadCoreEntry
    from torpor.images.schema.torpor import ThreadExtraEntry
    from torpor.resources.context import Dump, DumpTask, Restore, RestoreTask

SCHED_RESET_ON_FORK = 0x40000000  # in the policy of sched_getscheduler(2)
UTIL_MAX = 1024  # what is not clamped; 0 on a kernel that cannot clamp
REAL_TIME = (sched.SCHED_FIFO, sched.SCHED_RR)
TAKES_NICE = (sched.SCHED_OTHER, sched.SCHED_BATCH)  # with the others sched_setattr leaves the nice value alone
KNOWN = (sched.SCHED_OTHER, sched.SCHED_BATCH, sched.SCHED_IDLE, *REAL_TIME)


class Scheduling(Attribute):
    covers = frozenset({"thread:sched", "thread:nice"})

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        if task.running:
            for thread in task.threads:
                _refuse_policy(task, thread.tid, sched.sched_getattr(thread.tid), dump.refuse)

    def look_thread(self, task: "DumpTask", thread: "Tracee") -> tuple[SchedAttr, int, bytes]:
        attr = sched.sched_getattr(thread.tid)
        _refuse_policy(task, thread.tid, attr, _raise)
        if attr.policy in REAL_TIME:
            attr = attr._replace(nice=sched.getpriority(thread.tid))
        return attr, sched.ioprio_get(thread.tid), own.get_affinity(thread.tid)

    def save_thread(
        self, task: "DumpTask", thread: "Tracee", answer: tuple[SchedAttr, int, bytes], core: "CoreEntry"
    ) -> None:
        attr, io_priority, cpus = answer
        assert core.thread_core is not None
        core.thread_core.sched_nice = attr.nice
        core.thread_core.sched_policy = attr.policy | (
            SCHED_RESET_ON_FORK if attr.flags & sched.SCHED_FLAG_RESET_ON_FORK else 0
        )
        if attr.policy in REAL_TIME:
            core.thread_core.sched_prio = attr.priority
        extra = extras.of_thread(task, thread.tid)
        if cpus != _online():
            extra.cpus = cpus
        if attr.policy not in REAL_TIME and attr.runtime != _usual_slice():
            extra.slice_ns = attr.runtime
        if io_priority:
            extra.io_priority = io_priority

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        ours = own.facts()
        for tid, core in task.cores.items():
            thread = core.thread_core
            if thread is None:
                continue
            wanted = _attr(thread)
            if wanted.policy not in KNOWN:
                raise task.refusal(f"thread {tid} ran under scheduling policy {wanted.policy}")
            if not (-20 <= wanted.nice <= 19 and 0 <= wanted.priority <= 99):
                raise ImageError(f"the core image of thread {tid} is mangled", "its priority makes no sense")
            if ours.has(own.CAP_SYS_NICE):
                continue
            if wanted.policy in REAL_TIME and wanted.priority > ours.limits[14].soft:
                raise task.refusal(f"thread {tid} has a real-time priority", "run Torpor with CAP_SYS_NICE")
            if wanted.nice < ours.sched.nice and 20 - wanted.nice > ours.limits[13].soft:
                raise task.refusal(f"thread {tid} has the nice value {wanted.nice}", "run Torpor with CAP_SYS_NICE")
        _try(task, restore)

    def outside(self, task: "RestoreTask", restore: "Restore") -> None:
        ours = own.facts()
        extra = extras.load(restore, task.pid)
        default = SchedAttr(
            ours.sched.policy, ours.sched.flags & sched.SCHED_FLAG_RESET_ON_FORK, ours.sched.nice, ours.sched.priority
        )
        for tid, core in task.cores.items():
            if core.thread_core is None:
                continue
            try:
                _set(tid, _attr(core.thread_core), extra.threads.get(tid), default)
            except OSError as error:
                what = f"{task.subject}: its thread {tid} cannot be scheduled as it was"
                raise KernelError(what, error, "restore under the kernel that it was dumped on") from None


def _set(tid: int, wanted: SchedAttr, more: "ThreadExtraEntry | None", default: SchedAttr) -> None:
    ours = own.facts()
    slice = (more.slice_ns or 0) if more is not None else 0
    if wanted.policy in TAKES_NICE:
        wanted = wanted._replace(runtime=slice)
    elif wanted.nice != default.nice or slice:
        sched.sched_setattr(tid, SchedAttr(sched.SCHED_OTHER, nice=wanted.nice, runtime=slice))
    if wanted != default:
        sched.sched_setattr(tid, wanted)
    if more is None:
        return
    if (more.io_priority or 0) != ours.io_priority:
        sched.ioprio_set(tid, more.io_priority or 0)
    if more.cpus and more.cpus != ours.cpus:
        _pin(tid, more.cpus)


def _try(task: "RestoreTask", restore: "Restore") -> None:
    """What not every kernel takes, nor every control group, of the first thread that has it."""
    told: set[tuple[str, int]] = set()
    ours = own.facts()
    for tid, core in task.cores.items():
        attr = _attr(core.thread_core) if core.thread_core is not None else None
        if attr is not None and (error := _error_of(restore, attr)) and ("policy", attr.policy) not in told:
            told.add(("policy", attr.policy))
            why = f"thread {tid} has a real-time priority, which cannot be given here: {os.strerror(error)}"
            remedy = "run Torpor in a control group with time for such threads (cpu.rt_runtime_us)"
            restore.problem(task.refusal(why, remedy, code="no-rights"))
        more = task.extras.threads.get(tid)
        if more is None:
            continue
        if more.slice_ns and not _usual_slice() and ("slice", 0) not in told:
            told.add(("slice", 0))
            has = f"its thread {tid} has a time slice of its own (sched_setattr)"
            restore.problem(lacking.refusal(task.subject, has))
        priority = more.io_priority or 0
        if priority == ours.io_priority or ("io", priority) in told:
            continue
        if error := lacking.error_in_child(restore, "ioprio_set", sched.IOPRIO_WHO_PROCESS, 0, priority):
            told.add(("io", priority))
            restore.problem(lacking.refused(task.subject, f"its thread {tid} has {_words(priority)}", error))


def _error_of(restore: "Restore", attr: SchedAttr) -> int:
    """Of real-time policies: of the others nothing is in doubt but rights, and with them a child might end late."""
    if attr.policy not in REAL_TIME:
        return 0
    return lacking.error_of_trying(restore, attr, lambda: sched.sched_setattr(0, attr), in_child=True)


def _words(io_priority: int) -> str:
    hint = io_priority >> 3 & 0x3FF  # 6.5
    return f"an I/O priority with the hint {hint} (ioprio_set)" if hint else f"the I/O priority {io_priority:#x}"


def _refuse_policy(task: "DumpTask", tid: int, attr: SchedAttr, refuse: "Callable[[Refusal], None]") -> None:
    if attr.policy not in KNOWN:
        policy = "SCHED_DEADLINE" if attr.policy == sched.SCHED_DEADLINE else f"scheduling policy {attr.policy}"
        refuse(task.refusal(f"thread {tid} runs under {policy}", "give it another policy first (chrt)"))
    elif attr.policy not in REAL_TIME and (attr.util_min or attr.util_max not in (0, UTIL_MAX)):
        why = f"the utilisation of thread {tid} is clamped ({attr.util_min} to {attr.util_max})"
        refuse(task.refusal(why, "reset that first (uclampset -R)"))


def _online() -> bytes:
    """All CPUs.  A thread that may run on each of them was never pinned, and where it is restored it may as well."""
    global _all_cpus
    if _all_cpus is None:
        _all_cpus = sched.online_cpus()
    return _all_cpus


_all_cpus: bytes | None = None


def _usual_slice() -> int:
    """Nanoseconds; 0 before 6.12."""
    global _slice
    if _slice is None:
        _slice = sched.sched_getattr(0).runtime
    return _slice


_slice: int | None = None


def _raise(refusal: Refusal) -> None:
    raise refusal


def _attr(thread: "ThreadCoreEntry") -> SchedAttr:
    policy = thread.sched_policy or 0
    kind = policy & ~SCHED_RESET_ON_FORK
    return SchedAttr(
        kind,
        sched.SCHED_FLAG_RESET_ON_FORK if policy & SCHED_RESET_ON_FORK else 0,
        thread.sched_nice or 0,
        (thread.sched_prio or 0) if kind in REAL_TIME else 0,
    )


def _pin(tid: int, cpus: bytes) -> None:
    """CPUs that this machine lacks are left out; where it has none of them, the thread may run anywhere."""
    import errno

    try:
        own.set_affinity(tid, cpus)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        from torpor import log

        log.warning(f"thread {tid} ran on CPUs that this machine does not have; it may run on any now")


ATTRIBUTES = [Scheduling()]
