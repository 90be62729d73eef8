# SPDX-License-Identifier: Apache-2.0
"""Cgroups.  A restored task is in Torpor's own; a dumped one has to be, or the user has to say that it does not matter.

The set of cgroups that a task is in has a number in images; 1 is Torpor's own, for which no cgroup.img is written.
"""

from torpor.engine.stops import has_ended
from torpor.images import kinds
from torpor.kernel.proc import parse_cgroup, parse_stat
from torpor.kernel.procfs import read_all
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import Dump, DumpTask, Restore, RestoreTask

OWN_SET = 1
FREEZER = (b"do_freezer_trap", b"get_signal")  # the first is compiled into the second
REMEDY = "move it with Torpor into one cgroup, or leave cgroups alone by --manage-cgroups=ignore"


class Cgroups(Attribute):
    covers = frozenset({"task:cgroups"})

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        if dump.options.manage_cgroups == "ignore":
            return
        ours: bytes = dump.state.get("own cgroups") or dump.setdefault("own cgroups", read_all("/proc/self/cgroup"))
        theirs = _read(task.leader.tid)
        if theirs == ours:
            return
        known = {(m.hierarchy, m.controllers): m.path for m in parse_cgroup(ours)}
        for member in parse_cgroup(theirs):
            if known.get((member.hierarchy, member.controllers)) != member.path:
                name = ",".join(member.controllers) or "unified"
                why = f"it is in another cgroup than Torpor ({name}: {member.path})"
                dump.refuse(task.refusal(why, REMEDY, code="cgroup"))
                return  # the others say the same

    def examine_running(self, task: "DumpTask", dump: "Dump") -> None:
        if _is_frozen(task):
            why = "its cgroup is frozen (cgroup.freeze, a paused container): it could not be asked anything"
            dump.refuse(task.refusal(why, "let that go on first: a dump stops it by itself", code="cgroup"))
        elif len(task.threads) > 1 and dump.options.manage_cgroups != "ignore":
            _refuse_threads(task, dump)

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: None, core: "CoreEntry") -> None:
        assert core.thread_core is not None
        core.thread_core.cg_set = OWN_SET

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        if restore.options.manage_cgroups == "ignore":
            return
        if "root cgroups" not in restore.state:
            restore.state["root cgroups"] = restore.images.one(kinds.INVENTORY).root_cg_set
        root = restore.state["root cgroups"]
        tc = task.core.tc
        sets = {tc.cg_set if tc is not None else None}
        sets.update(core.thread_core.cg_set for core in task.cores.values() if core.thread_core is not None)
        if sets - {None, root}:
            raise task.refusal("it was in another cgroup than whoever dumped it", REMEDY, code="cgroup")


def _read(tid: int) -> bytes:
    return read_all(f"/proc/{tid}/cgroup")


def _refuse_threads(task: "DumpTask", dump: "Dump") -> None:
    """A thread may be in others than its process: in version 1, and in threaded cgroups of version 2."""
    cgroups = _read(task.leader.tid)
    for tid, own in task.of_other_threads(_read):
        if own != cgroups and not has_ended(tid):  # then it is in none any more
            why = f"its thread {tid} is in another cgroup than the first"
            dump.refuse(task.refusal(why, REMEDY, code="cgroup"))
            return


def _is_frozen(task: "DumpTask") -> bool:
    """Whether a cgroup of version 2 holds the task: it sleeps on its way out of the kernel.  ptrace can stop it there,
    but it makes no system call.  (One of version 1 lets nobody stop it, which the freeze says.)"""
    try:
        where = read_all(f"/proc/{task.leader.tid}/wchan")
        return where in FREEZER and parse_stat(read_all(f"/proc/{task.leader.tid}/stat")).state == "S"
    except OSError:
        return False


ATTRIBUTES = [Cgroups()]
