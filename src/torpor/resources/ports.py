# SPDX-License-Identifier: Apache-2.0
"""Permission for I/O ports of x86 (ioperm(2), iopl(2)), of each thread: recognised and refused in words.

A register set has what ioperm has allowed.  What iopl has allowed (an emulation since Linux 5.5) is in no register, and
only the thread can find out: to ask for the level that it has already is no error even for one that may not ask.  So a
thread that may (CAP_SYS_RAWIO) gives up that right for the moment, lest it should get what it asks for; that takes one
program that nothing interrupts, which only the executor runs, and threads that all have the same rights: others are not
asked.  (arch/x86/kernel/ioport.c of Linux 6.12.)
"""

import struct

from torpor.arch import native
from torpor.engine.executor import Executor
from torpor.kernel import ptrace
from torpor.resources.base import Attribute
from torpor.resources.creds import CAP_VERSION
from torpor.resources.own import CAP_SYS_RAWIO
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Pointer, Program, Result
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import Dump, DumpTask

ALL_PORTS = 3  # the level
_RAWIO = 1 << CAP_SYS_RAWIO
_REMEDY = "end the program that drives hardware first"


class Ports(Attribute):
    covers = frozenset({"task:ioperm"})

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        if task.running or native().name != "x86_64":
            return
        for thread in task.threads:
            if ptrace.has_io_bitmap(thread.tid):
                dump.refuse(task.refusal(f"{task.named(thread)} has permission for I/O ports (ioperm)", _REMEDY))
                return

    def ask_thread(self, task: "DumpTask", program: "Program") -> "Result | None":
        if native().name != "x86_64":
            return None
        creds = [status.credentials for status in task.thread_statuses.values()]
        rights = {(one.effective, one.permitted, one.inheritable) for one in creds}
        if not any(effective & _RAWIO for effective, _, _ in rights):
            return program.call("iopl", ALL_PORTS, may_fail=True)
        if len(rights) > 1 or task.own_files or not isinstance(task.runner, Executor):
            return None
        ((effective, *others),) = rights
        header = program.put(struct.pack("=Ii", CAP_VERSION, 0))
        program.call("capset", header, _capabilities(program, effective & ~_RAWIO, *others))
        level = program.call("iopl", ALL_PORTS, may_fail=True)
        back = _capabilities(program, effective, *others)
        program.call("capset", header, back, may_fail=True)
        program.call("capset", header, back)  # twice: whatever call fails, the thread has its right again
        return level

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "Result | None", core: "CoreEntry") -> None:
        if answer is not None and answer.value == 0:
            raise task.refusal(f"{task.named(thread)} has permission for all I/O ports (iopl)", _REMEDY)


def _capabilities(program: "Program", *sets: int) -> "Pointer":
    return program.put(struct.pack("=6I", *(x & 0xFFFFFFFF for x in sets), *(x >> 32 for x in sets)))


ATTRIBUTES = [Ports()]
