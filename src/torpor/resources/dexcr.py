# SPDX-License-Identifier: Apache-2.0
"""The dynamic execution control register of POWER10 and later, of each thread: what speculation it has given up, and
whether hashes of return addresses are checked.  prctl(PR_PPC_GET_DEXCR), 6.10.  The key of the hashes, which it has by
chance, is among its registers (arch/ppc64le.py).

A thread begins with its maker's, which for the first is Torpor's own: only what differs from that is stored, and set.
(QEMU's POWER10 keeps only what is set for the next program: nobody could try the rest.)
"""

from torpor.arch import native
from torpor.kernel.process import prctl
from torpor.resources import extras, lacking
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Program, Result
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import DumpTask, Restore, RestoreTask

PR_PPC_GET_DEXCR, PR_PPC_SET_DEXCR = 72, 73
SET, CLEAR, SET_ONEXEC, CLEAR_ONEXEC = 2, 4, 8, 16
ASPECTS = range(4) if native().name == "ppc64le" else ()  # PR_PPC_DEXCR_SBHE, IBRTPD, SRAPD, NPHIE
ON, ON_AFTER_EXEC = 1, 2  # two bits for each aspect


class Dexcr(Attribute):
    covers = frozenset({"task:dexcr"})

    def ask_thread(self, task: "DumpTask", program: "Program") -> "list[Result]":
        return [program.call("prctl", PR_PPC_GET_DEXCR, aspect, 0, 0, 0, may_fail=True) for aspect in ASPECTS]

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "list[Result]", core: "CoreEntry") -> None:
        if ASPECTS and (value := _value([result.value for result in answer])) != _ours():
            extras.of_thread(task, thread.tid).dexcr = value

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        for tid, extra in task.extras.threads.items():
            for aspect in ASPECTS if extra.dexcr is not None else ():
                call = PR_PPC_SET_DEXCR, aspect, _control(extra.dexcr or 0, aspect), 0, 0
                if _differs(extra.dexcr or 0, aspect) and lacking.error_in_child(restore, "prctl", *call):
                    has = f"its thread {tid} has set aspect {aspect} of dynamic execution control (PR_PPC_SET_DEXCR)"
                    raise lacking.refusal(task.subject, has)

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        if not ASPECTS:
            return
        own, first = (extra.dexcr if (extra := task.extras.threads.get(one)) else None for one in (tid, task.pid))
        if own is None and first is None:
            return
        wanted, inherited = (_ours() if value is None else value for value in (own, first))
        for aspect in ASPECTS:
            if _differs(wanted, aspect) or _differs(inherited, aspect):
                program.call("prctl", PR_PPC_SET_DEXCR, aspect, _control(wanted, aspect), 0, 0)


def _value(controls: "list[int]") -> int:
    """Of each aspect whether it is on, and whether it is after execve(2); errors: it is not there."""
    value = 0
    for aspect, control in enumerate(controls):
        if control > 0:
            value |= (bool(control & SET) * ON | bool(control & SET_ONEXEC) * ON_AFTER_EXEC) << 2 * aspect
    return value


def _ours() -> int:
    """Torpor's own."""
    controls = []
    for aspect in ASPECTS:
        try:
            controls.append(prctl(PR_PPC_GET_DEXCR, aspect))
        except OSError:
            controls.append(0)
    return _value(controls)


def _differs(value: int, aspect: int) -> bool:
    """From Torpor's own."""
    return bool((value ^ _ours()) >> 2 * aspect & (ON | ON_AFTER_EXEC))


def _control(value: int, aspect: int) -> int:
    value >>= 2 * aspect
    return (SET if value & ON else CLEAR) | (SET_ONEXEC if value & ON_AFTER_EXEC else CLEAR_ONEXEC)


ATTRIBUTES = [Dexcr()]
