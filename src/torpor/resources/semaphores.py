# SPDX-License-Identifier: Apache-2.0
"""System V semaphores that the kernel would undo for a process at its end (SEM_UNDO).

The semaphores live on when the process is ended for a dump, but what it holds of them by SEM_UNDO is given back then,
and nothing tells how much that was.  So a process that holds some is refused.  Two things are to be seen: that it has
a list of such adjustments at all (kcmp(2): everybody who has none has the same nothing; whoever makes a thread gets
one), and who has operated each semaphore last (GETPID of semctl(2)).  Whoever holds a lock has operated it last.
"""

import os

from torpor import signals as signal
from torpor.kernel.process import KCMP_SYSVSEM, fork_idle, kcmp
from torpor.kernel.procfs import read_all
from torpor.kernel.syscall import call
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump, DumpTask

GETPID = 11
_LAST = "semaphores: operated last"


class Undo(Attribute):
    covers = frozenset({"task:sem_undo"})

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        key = f"{_LAST}, running" if task.running else _LAST
        last: dict[int, tuple[int, int]] | None = dump.state.get(key)
        if last is None:
            dump.state[key] = last = _operated_last()
        if task.pid in last and _may_undo(task.leader.tid):
            number, semid = last[task.pid]
            why = f"it was the last to operate semaphore {number} of the set {semid}, and may have asked for SEM_UNDO"
            remedy = "try again when it holds no System V semaphore"
            dump.refuse(task.refusal(f"{why}, which would be done when it is ended", remedy, code="semaphores"))


def _operated_last() -> dict[int, tuple[int, int]]:
    """PID → one semaphore, by its number and its set, that nobody has operated since."""
    try:
        lines = read_all("/proc/sysvipc/sem").splitlines()[1:]
    except FileNotFoundError:  # a kernel without System V IPC
        return {}
    found = {}
    for line in lines:
        _, semid, _, number, *_ = line.split()
        for i in range(int(number)):
            try:
                found[call("semctl", int(semid), i, GETPID)] = i, int(semid)
            except OSError:  # removed meanwhile, or not ours to read
                break
    return found


def _may_undo(tid: int) -> bool:
    """Whether it has another list of adjustments than a process that was just born, which has none."""
    pid = fork_idle()
    try:
        return kcmp(tid, pid, KCMP_SYSVSEM) != 0
    except OSError:  # a kernel without them
        return False
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


ATTRIBUTES = [Undo()]
