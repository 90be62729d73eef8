# SPDX-License-Identifier: Apache-2.0
"""What prctl(2) and files of /proc set for a process or a thread and that belongs nowhere else.

- A change of credentials resets the dumpable flag of the process and the parent-death signal of the thread: both are
  set after creds.py is through, the flag when all threads are.
- dumpable 2 (owned by root) cannot be set; it comes back as 0, which is stricter.
- loginuid can be written only by the task itself, oom_score_adj from outside; lowering that needs CAP_SYS_RESOURCE.
"""

import os
import struct

from torpor.kernel.syscall import call
from torpor.resources import extras, lacking, own
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Pointer, Program, Result
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import DumpTask, Restore, RestoreTask

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_DUMPABLE = 1, 2, 4
PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
MEMBARRIER_REGISTRATIONS = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8
MEMBARRIER_QUERY, MEMBARRIER_REGISTER_GLOBAL = 0, 1 << 2
MEMBARRIER_PRIVATES = (1 << 3, 1 << 5, 1 << 7)  # private, with core sync, with rseq; to register is the next bit
MEMBARRIER_PRIVATE, MEMBARRIER_REGISTER_PRIVATE, MEMBARRIER_GET_REGISTRATIONS = 1 << 3, 1 << 4, 1 << 9
O_WRONLY, AT_FDCWD = 1, -100


class ParentDeath(Attribute):
    covers = frozenset({"thread:pdeathsig"})

    def ask_thread(self, task: "DumpTask", program: "Program") -> "Pointer":
        space = program.space(4)
        program.call("prctl", PR_GET_PDEATHSIG, space)
        return space

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "Pointer", core: "CoreEntry") -> None:
        assert core.thread_core is not None
        number = struct.unpack(f"{thread.arch.word[0]}i", answer.data)[0]
        core.thread_core.pdeath_sig = number or None

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        assert core.thread_core is not None
        if core.thread_core.pdeath_sig:
            program.call("prctl", PR_SET_PDEATHSIG, core.thread_core.pdeath_sig)


class TimerSlack(Attribute):
    """CRIU's images do not hold it.  A thread starts with its maker's."""

    covers = frozenset({"thread:timer_slack"})

    def ask_thread(self, task: "DumpTask", program: "Program") -> "Result":
        return program.call("prctl", PR_GET_TIMERSLACK)

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "Result", core: "CoreEntry") -> None:
        extras.of_thread(task, thread.tid).timer_slack_ns = answer.value

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        extra = task.extras.threads.get(tid)
        slack = extra.timer_slack_ns if extra is not None else None
        if slack is not None and slack != own.facts().timer_slack:
            program.call("prctl", PR_SET_TIMERSLACK, slack)


class Dumpable(Attribute):
    """Saved with the address space (memory/dump.py), but reset by credentials."""

    covers = frozenset({"task:dumpable"})

    def last(self, task: "RestoreTask", program: "Program") -> None:
        if task.mm is not None and task.mm.dumpable is not None:
            program.call("prctl", PR_SET_DUMPABLE, 1 if task.mm.dumpable == 1 else 0)


class Subreaper(Attribute):
    covers = frozenset({"task:child_subreaper"})

    def ask(self, task: "DumpTask", program: "Program") -> "Pointer":
        space = program.space(4)
        program.call("prctl", PR_GET_CHILD_SUBREAPER, space)
        return space

    def save(self, task: "DumpTask", answer: "Pointer", core: "CoreEntry") -> None:
        assert core.tc is not None
        core.tc.child_subreaper = any(answer.data)

    def last(self, task: "RestoreTask", program: "Program") -> None:
        """Whatever the task was while the tree was made."""
        assert task.core.tc is not None
        program.call("prctl", PR_SET_CHILD_SUBREAPER, 1 if task.core.tc.child_subreaper else 0)


def _registrations_are_told() -> bool:
    return _membarrier(MEMBARRIER_GET_REGISTRATIONS) >= 0


def _has_membarrier() -> bool:
    return _membarrier(MEMBARRIER_QUERY) > 0


def _membarrier(command: int) -> int:
    try:
        return call("membarrier", command, 0, 0)
    except OSError:
        return -1


class Membarrier(Attribute):
    """Registrations for membarrier(2).  Linux tells them since 6.3; before that, those for private barriers are found
    by trying such a barrier, which fails with EPERM without one.  Nothing tells of the one for global barriers, which a
    task needs to be reached by those of others: so there every task is registered for it, at the price of an interrupt.
    The kernel shows a registration for SYNC_CORE or RSEQ as one for PRIVATE_EXPEDITED, too; whether there is one only
    such a barrier tells.
    """

    covers = frozenset({"task:membarrier"})

    def ask(self, task: "DumpTask", program: "Program") -> "tuple[Result, ...]":
        barriers = (MEMBARRIER_PRIVATE,) if _registrations_are_told() else MEMBARRIER_PRIVATES
        asked = (MEMBARRIER_GET_REGISTRATIONS, *barriers)
        return tuple(program.call("membarrier", command, 0, 0, may_fail=True) for command in asked)

    def save(self, task: "DumpTask", answer: "tuple[Result, ...]", core: "CoreEntry") -> None:
        assert core.tc is not None
        registered, private, *others = answer
        if others:
            mask = MEMBARRIER_REGISTER_GLOBAL if _has_membarrier() else 0
            for barrier, result in zip(MEMBARRIER_PRIVATES, (private, *others), strict=True):
                mask |= barrier << 1 if result.value >= 0 else 0
        else:
            mask = max(registered.value, 0) & (~MEMBARRIER_REGISTER_PRIVATE if private.value < 0 else ~0)
        core.tc.membarrier_registration_mask = mask or None

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        assert task.core.tc is not None
        mask = task.core.tc.membarrier_registration_mask or 0
        unknown = mask & ~MEMBARRIER_REGISTRATIONS
        if unknown:
            raise task.refusal(f"it is registered for memory barriers that Torpor does not know ({unknown:#x})")
        if mask and (missing := mask & ~max(_membarrier(MEMBARRIER_QUERY), 0)):
            raise lacking.refusal(task.subject, f"it is registered for memory barriers (membarrier, {missing:#x})")

    def place(self, task: "RestoreTask", program: "Program") -> None:
        assert task.core.tc is not None
        mask = task.core.tc.membarrier_registration_mask or 0
        for bit in range(32):
            if mask >> bit & 1:
                program.call("membarrier", 1 << bit, 0, 0)


class OomScore(Attribute):
    covers = frozenset({"task:oom_score_adj"})

    def ask(self, task: "DumpTask", program: "Program") -> int | None:
        return own.number_file(f"/proc/{task.leader.tid}/oom_score_adj")

    def save(self, task: "DumpTask", answer: int | None, core: "CoreEntry") -> None:
        assert core.tc is not None
        core.tc.oom_score_adj = answer

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        assert task.core.tc is not None
        wanted = task.core.tc.oom_score_adj
        possible: set[int] = restore.state.setdefault("possible oom scores", {own.facts().oom_score_adj})
        if wanted is None or wanted in possible:
            return
        try:  # nothing tells how low it may be set, so try it on ourselves
            _write_oom("self", wanted)
            _write_oom("self", own.facts().oom_score_adj)
        except OSError:
            raise task.refusal(
                f"its oom_score_adj of {wanted} is lower than Torpor may set",
                "run Torpor with CAP_SYS_RESOURCE, or under an oom_score_adj as low as that",
                code="no-rights",
            ) from None
        possible.add(wanted)

    def outside(self, task: "RestoreTask", restore: "Restore") -> None:
        assert task.core.tc is not None
        wanted = task.core.tc.oom_score_adj
        if wanted is not None and wanted != own.facts().oom_score_adj:
            _write_oom(str(task.pid), wanted)


def _write_oom(task: str, value: int) -> None:
    fd = os.open(f"/proc/{task}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % value)
    finally:
        os.close(fd)


class LoginUid(Attribute):
    """The audit system's login user.  Only the task itself may set it."""

    covers = frozenset({"task:loginuid"})

    def ask(self, task: "DumpTask", program: "Program") -> int | None:
        return own.number_file(f"/proc/{task.leader.tid}/loginuid")

    def save(self, task: "DumpTask", answer: int | None, core: "CoreEntry") -> None:
        assert core.tc is not None
        core.tc.loginuid = answer

    def place(self, task: "RestoreTask", program: "Program") -> None:
        assert task.core.tc is not None
        wanted, ours = task.core.tc.loginuid, own.facts().loginuid
        if wanted is None or ours is None or wanted == ours:
            return
        text = b"%d" % wanted
        # A task with a root of its own may not have it.
        fd = program.call("openat", AT_FDCWD, program.string("/proc/self/loginuid"), O_WRONLY, 0, may_fail=True)
        task.loginuid_written = program.call("write", fd, program.put(text), len(text), may_fail=True)
        program.call("close", fd, may_fail=True)

    def outside(self, task: "RestoreTask", restore: "Restore") -> None:
        written = task.loginuid_written
        if written is not None and written.value < 0:
            from torpor import log

            why = os.strerror(-written.value)
            log.warning(f"{task.subject}: its login user (for the audit log) could not be set back: {why}")


ATTRIBUTES = [ParentDeath(), TimerSlack(), Dumpable(), Subreaper(), Membarrier(), OomScore(), LoginUid()]
