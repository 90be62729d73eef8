# SPDX-License-Identifier: Apache-2.0
"""Settings of a process or a thread that are rarely other than they begin (prctl(2), arch_prctl(2)).

Threads and children inherit all of them: the leader sets its own before there are any.  Memory-deny-write-execute
cannot be taken off again: it is set last.  What this kernel, or this processor, does not have is found by asking it.
"""

import errno
import os
import struct

from torpor.arch import native
from torpor.errors import KernelError
from torpor.kernel.process import prctl
from torpor.kernel.procfs import read_all
from torpor.resources import extras, lacking, own
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torpor.engine.program import Pointer, Program, Result
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import Dump, DumpTask, Restore, RestoreTask

PR_GET_UNALIGN, PR_SET_UNALIGN, PR_GET_FPEXC, PR_SET_FPEXC = 5, 6, 11, 12
PR_GET_TSC, PR_SET_TSC, PR_TSC_ENABLE = 25, 26, 1
PR_MCE_KILL, PR_MCE_KILL_GET, PR_MCE_KILL_SET, PR_MCE_KILL_DEFAULT = 33, 34, 1, 2
PR_SET_THP_DISABLE, PR_GET_THP_DISABLE = 41, 42
PR_GET_SPECULATION_CTRL, PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH = 52, 53, 0, 1
PR_SET_MDWE, PR_GET_MDWE = 65, 66
PR_SET_MEMORY_MERGE, PR_GET_MEMORY_MERGE = 67, 68
ARCH_GET_CPUID, ARCH_SET_CPUID = 0x1011, 0x1012
PR_SPEC_PRCTL = 1  # of what PR_GET_SPECULATION_CTRL answers: this task's own setting is in the other bits
PR_SPEC_ENABLE, PR_SPEC_DISABLED = 1 << 1, 1 << 2 | 1 << 3  # off, or off for good
PF_IO_FLUSHER = 0x00080000  # PF_MEMALLOC_NOIO
DEFAULT_COREDUMP_FILTER = 0x33


class _Switch(NamedTuple):
    """A setting of a process: its field in TaskExtraEntry, what it is for people, the arguments that ask and set it,
    and what is not worth storing.

    `of_threads`: each thread has its own, which begins as that of the thread that makes it (ThreadExtraEntry).
    `machine`: the only architecture that has it.
    """

    field: str
    words: str
    get: tuple[int, ...]
    set: tuple[int, ...]  # the value comes after it
    default: int
    by_pointer: bool = False
    of_threads: bool = False
    machine: str = ""
    call: str = "prctl"

    def setting(self, value: int) -> tuple[int, ...]:
        return *self.set, value, *[0] * (4 - len(self.set))


# On ppc64le the trapping of floating-point exceptions is in MSR, too, but there the kernel puts it itself.
_ALL = (
    _Switch("memory_merge", "it lets its memory be merged (PR_SET_MEMORY_MERGE)",
            (PR_GET_MEMORY_MERGE, 0, 0, 0, 0), (PR_SET_MEMORY_MERGE,), 0),
    _Switch("tsc", "it may not read the time stamp counter (PR_SET_TSC)",
            (PR_GET_TSC,), (PR_SET_TSC,), PR_TSC_ENABLE, by_pointer=True, of_threads=True),
    _Switch("mce_kill", "it has a policy for memory errors (PR_MCE_KILL)",
            (PR_MCE_KILL_GET, 0, 0, 0, 0), (PR_MCE_KILL, PR_MCE_KILL_SET), PR_MCE_KILL_DEFAULT, of_threads=True),
    _Switch("fp_exceptions", "it is told of floating-point exceptions (PR_SET_FPEXC)",
            (PR_GET_FPEXC,), (PR_SET_FPEXC,), 0, by_pointer=True, of_threads=True, machine="ppc64le"),
    _Switch("unaligned", "it has a policy for unaligned accesses (PR_SET_UNALIGN)",
            (PR_GET_UNALIGN,), (PR_SET_UNALIGN,), 0, by_pointer=True, of_threads=True, machine="ppc64le"),
    _Switch("cpuid", "it may not use the instruction CPUID (ARCH_SET_CPUID)",
            (ARCH_GET_CPUID, 0), (ARCH_SET_CPUID,), 1, of_threads=True, machine="x86_64", call="arch_prctl"),
)  # fmt: skip
SWITCHES = tuple(switch for switch in _ALL if switch.machine in ("", native().name))
SPECULATION = (
    ("store_bypass", PR_SPEC_STORE_BYPASS, "speculation_store_bypass"),
    ("indirect_branch", PR_SPEC_INDIRECT_BRANCH, "speculation_indirect_branch"),
)


class Switches(Attribute):
    """Settings of a process that are rarely other than they begin."""

    covers = frozenset(
        {"task:memory_merge", "task:tsc", "task:mce_kill", "task:speculation", "task:mdwe", "task:thp_disable",
         "task:coredump_filter", "task:io_flusher", "task:fp_exceptions", "task:unaligned", "task:cpuid"}
    )  # fmt: skip

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        if task.stat.flags & PF_IO_FLUSHER:
            dump.refuse(task.refusal("it is an I/O flusher (PR_SET_IO_FLUSHER)", "end the storage daemon first"))
        statuses = task.thread_statuses
        expected = statuses[task.leader.tid].credentials.speculation
        for tid, status in statuses.items():
            if status.credentials.speculation != expected:
                why = f"its thread {tid} has speculation controls of its own (PR_SET_SPECULATION_CTRL)"
                dump.refuse(task.refusal(why, "set them before threads are made"))

    def examine_running(self, task: "DumpTask", dump: "Dump") -> None:
        if not task.stat.flags & PF_IO_FLUSHER:
            _refuse_flushers(task, dump)

    def ask(self, task: "DumpTask", program: "Program") -> Any:
        """Field -> result of the call, and where it put its answer."""
        assert task.status is not None
        asked = {switch.field: _ask(switch, program) for switch in SWITCHES}
        for field, which, shown in SPECULATION:
            if getattr(task.status, shown).startswith("thread") or "conditional" in getattr(task.status, shown):
                asked[field] = program.call("prctl", PR_GET_SPECULATION_CTRL, which, 0, 0, 0, may_fail=True), None
        asked["mdwe"] = program.call("prctl", PR_GET_MDWE, 0, 0, 0, 0, may_fail=True), None
        asked["thp_disable"] = program.call("prctl", PR_GET_THP_DISABLE, 0, 0, 0, 0, may_fail=True), None
        return asked, own.number_file(f"/proc/{task.leader.tid}/coredump_filter", 16)

    def save(self, task: "DumpTask", answer: Any, core: "CoreEntry") -> None:
        asked, coredump_filter = answer
        defaults = {switch.field: switch.default for switch in SWITCHES}
        for field, (result, space) in asked.items():
            if result.value < 0:
                continue  # this kernel does not have it
            value = _value(task, result, space)
            if value != defaults.get(field, 0):
                task.process_extras[field] = value
        if coredump_filter not in (None, DEFAULT_COREDUMP_FILTER):
            task.process_extras["coredump_filter"] = coredump_filter

    def ask_thread(self, task: "DumpTask", program: "Program") -> "list[tuple[_Switch, Result, Pointer | None]]":
        return [(switch, *_ask(switch, program)) for switch in SWITCHES if switch.of_threads]

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: Any, core: "CoreEntry") -> None:
        for switch, result, space in answer:
            value = _value(task, result, space) if result.value >= 0 else None
            if value not in (None, task.process_extras.get(switch.field, switch.default)):
                setattr(extras.of_thread(task, thread.tid), switch.field, value)

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        extra = task.extras.threads.get(tid)
        for switch in SWITCHES if extra is not None else ():
            if switch.of_threads and (value := getattr(extra, switch.field)) is not None:
                _set(switch, value, program)

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        extra = extras.load(restore, task.pid)
        if extra.process.memory_merge and not own.facts().has(own.CAP_SYS_RESOURCE):
            raise task.refusal(
                "it lets its memory be merged (PR_SET_MEMORY_MERGE)",
                "run Torpor with CAP_SYS_RESOURCE",
                code="no-rights",
            )
        for switch in SWITCHES:
            entries = (extra.process, *extra.threads.values()) if switch.of_threads else (extra.process,)
            for value in {getattr(entry, switch.field) for entry in entries} - {None}:
                _try(restore, task, switch.words, switch.call, *switch.setting(value))
        for field, which, _ in SPECULATION:
            value = getattr(extra.process, field) or 0
            if value & PR_SPEC_PRCTL and value & PR_SPEC_DISABLED and own_speculation(which) == PR_SPEC_ENABLE:
                words = f"it does without speculation of a kind ({field}, PR_SET_SPECULATION_CTRL)"
                restore.problem(lacking.refusal(task.subject, words))
        if extra.process.mdwe:
            words = "what it has written to memory may never be executed (PR_SET_MDWE)"
            _try(restore, task, words, "prctl", PR_SET_MDWE, extra.process.mdwe, 0, 0, 0)
        if disabled := extra.process.thp_disable:
            words = "it has no transparent huge pages but where it asks for them (PR_SET_THP_DISABLE)"
            _try(restore, task, words, "prctl", PR_SET_THP_DISABLE, 1, disabled & ~1, 0, 0)

    def place(self, task: "RestoreTask", program: "Program") -> None:
        extra = task.extras.process
        for switch in SWITCHES:
            value = getattr(extra, switch.field)
            if value is not None:
                _set(switch, value, program)
        for field, which, _ in SPECULATION:
            value = getattr(extra, field)
            if value is not None and value & PR_SPEC_PRCTL and own_speculation(which) & PR_SPEC_PRCTL:
                program.call("prctl", PR_SET_SPECULATION_CTRL, which, value & ~PR_SPEC_PRCTL, 0, 0)

    def last(self, task: "RestoreTask", program: "Program") -> None:
        extra = task.extras.process
        disabled = extra.thp_disable
        if disabled is None:
            disabled = int(task.mm is not None and bool(task.mm.thp_disabled))
        if disabled:
            program.call("prctl", PR_SET_THP_DISABLE, 1, disabled & ~1, 0, 0)
        if extra.mdwe:
            program.call("prctl", PR_SET_MDWE, extra.mdwe, 0, 0, 0)

    def outside(self, task: "RestoreTask", restore: "Restore") -> None:
        wanted = task.extras.process.coredump_filter
        ours = own.facts().coredump_filter
        if wanted is None and task.extras.ours:
            wanted = DEFAULT_COREDUMP_FILTER
        if wanted is None or ours is None or wanted == ours:
            return
        try:
            fd = os.open(f"/proc/{task.pid}/coredump_filter", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"%#x" % wanted)
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(f"cannot set what a core dump of task {task.pid} holds", error) from None


def _refuse_flushers(task: "DumpTask", dump: "Dump") -> None:
    """Threads that are what the first is not.  (/proc/TID/stat adds up the times of all threads, for each of them.)"""
    tasks = f"/proc/{task.pid}/task"
    for tid, stat in task.of_other_threads(lambda tid: read_all(f"{tasks}/{tid}/stat")):
        if int(stat[stat.rindex(b")") + 2 :].split(b" ", 7)[6]) & PF_IO_FLUSHER:
            why = f"its thread {tid} is an I/O flusher (PR_SET_IO_FLUSHER)"
            dump.refuse(task.refusal(why, "end the storage daemon first"))
            return


def _ask(switch: _Switch, program: "Program") -> "tuple[Result, Pointer | None]":
    space = program.space(4) if switch.by_pointer else None
    pointer = (space,) if space is not None else ()
    return program.call(switch.call, *switch.get, *pointer, may_fail=True), space


def _set(switch: _Switch, value: int, program: "Program") -> None:
    program.call(switch.call, *switch.setting(value))


def own_speculation(which: int) -> int:
    """PR_GET_SPECULATION_CTRL of Torpor itself.  Without PR_SPEC_PRCTL nobody can choose here: 0, a processor that
    needs no such thing; PR_SPEC_DISABLE, it is off for all; PR_SPEC_ENABLE, on for all, also where nothing is known."""
    try:
        return prctl(PR_GET_SPECULATION_CTRL, which)
    except OSError:
        return PR_SPEC_ENABLE


def _try(restore: "Restore", task: "RestoreTask", words: str, call: str, *args: int) -> None:
    error = lacking.error_in_child(restore, call, *args)
    if error == errno.ENODEV:
        restore.problem(lacking.refusal(task.subject, words))
    elif error > 0:
        restore.problem(lacking.refused(task.subject, words, error))


def _value(task: "DumpTask", result: "Result", space: "Pointer | None") -> int:
    return result.value if space is None else int(struct.unpack(f"{task.leader.arch.word[0]}i", space.data)[0])


ATTRIBUTES = [Switches()]
