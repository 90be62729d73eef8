# SPDX-License-Identifier: Apache-2.0
"""What a wait status of a traced task means.

A seized task stops for many reasons, and they come in any order: the SIGTRAP|0x80 of a system call (TRACESYSGOOD), the
event of PTRACE_INTERRUPT (signal SIGTRAP) or of a group-stop (a stop signal), fork, clone and exec events, and the
delivery of a signal that cannot be blocked (SIGSTOP).  Nothing may be assumed about the next stop, so every wait status
goes through `classify`.  Facts: ptrace(2), "Stopped states".
"""

import os
import time

from torpor import signals as signal
from torpor.errors import TorporError
from torpor.kernel import ptrace
from torpor.kernel.proc import PF_EXITING, Stat, parse_stat
from torpor.kernel.procfs import read_all
from torpor.typed import Callable, NamedTuple, TypeVar

WALL = 0x40000000
_PATIENCE_S, _PAUSE_S = 0.01, 0.0005  # before it asks whether a task has ended; between two looks then
STOP_SIGNALS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})

_SOON_S = 0.0001
_ALONE = len(os.sched_getaffinity(0)) == 1  # nobody can work beside us

own_sigchld = False  # SIGCHLD is blocked in this process, and nobody else's


_Found = TypeVar("_Found")


def soon(look: Callable[[], _Found | None]) -> _Found | None:
    """What a task that works on another processor will have for us in a moment, unless it takes longer.  Who sleeps
    until then wakes up late: a stop takes 70 µs so, and 20 where we look again and again (Linux 6.18, two processors
    of a virtual machine)."""
    found = look()
    until = 0.0 if found is not None or _ALONE else time.monotonic() + _SOON_S
    while found is None and time.monotonic() < until:
        os.sched_yield()
        found = look()
    return found


class Kind:
    CALL = "call"  # entry to, or exit from, a system call
    INTERRUPTED = "interrupted"  # PTRACE_INTERRUPT, or a new auto-attached task's first stop
    GROUP_STOP = "group stop"  # the process is stopped by job control; `signal` says by which signal
    SIGNAL = "signal"  # `signal` is about to be delivered
    EVENT = "event"  # fork, vfork, clone, exec: `event`
    ENDED = "ended"  # exited or was killed; `status` says how


class Stop(NamedTuple):
    tid: int
    kind: str  # of Kind
    signal: int
    event: int
    status: int


def classify(tid: int, status: int) -> Stop:
    if not os.WIFSTOPPED(status):
        return Stop(tid, Kind.ENDED, 0, 0, status)
    sig, event = os.WSTOPSIG(status), status >> 16
    if sig == signal.SIGTRAP | 0x80:
        kind = Kind.CALL
    elif event == ptrace.EVENT_STOP:
        kind = Kind.GROUP_STOP if sig in STOP_SIGNALS else Kind.INTERRUPTED
    elif event:
        kind = Kind.EVENT
    else:
        kind = Kind.SIGNAL
    return Stop._make((tid, kind, sig & 0x7F, event, status))


def wait(tid: int) -> Stop:
    """The next stop of `tid`, or its end.  Waits by TID: a host program's children are none of our business."""
    stop = soon(lambda: poll(tid))
    return stop or classify(tid, os.waitpid(tid, WALL)[1])


def wait_leader(pid: int) -> Stop:
    """As `wait`, for the first thread of a process whose other threads are traced, too.

    When such a process is killed, the first thread's end is told only after its other threads have been waited for,
    and waitpid(2) would take for ever.  But each end, as each stop, raises SIGCHLD: where that is ours (the engine
    blocks it) it wakes us, in a host program's process (torpor.infect) we look again and again.
    """
    start = 0.0
    stop = soon(lambda: poll(pid))
    while stop is None:
        if own_sigchld:
            late = signal.sigtimedwait((signal.SIGCHLD,), _PATIENCE_S) is None
        else:
            now = time.monotonic()
            start = start or now
            late = now - start > _PATIENCE_S
            time.sleep(_PAUSE_S if late else 0)
        if late and has_ended(pid):
            return poll(pid) or Stop(pid, Kind.ENDED, 0, 0, 0)
        stop = poll(pid)
    return stop


def has_ended(tid: int) -> bool:
    """Whether a task is a zombie, or not even that."""
    stat = _stat(tid)
    return stat is None or stat.state in "ZX"


def is_ending(tid: int) -> bool:
    """Whether a task has ended, or has begun to: it gives up its memory and files then."""
    stat = _stat(tid)
    return stat is None or stat.state in "ZX" or bool(stat.flags & PF_EXITING)


def _stat(tid: int) -> Stat | None:
    try:
        return parse_stat(read_all(f"/proc/{tid}/stat"))
    except (OSError, TorporError):
        return None


def peek_group_stop(tid: int) -> bool | None:
    """Whether the stop that `poll` will tell next is one by job control; None where there is nothing yet."""
    told = os.waitid(os.P_PID, tid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
    if told is None:
        return None
    return (
        told.si_code == os.CLD_TRAPPED
        and told.si_status >> 8 == ptrace.EVENT_STOP
        and (told.si_status & 0x7F in STOP_SIGNALS)
    )


def poll(tid: int) -> Stop | None:
    """As `wait`, but None where there is nothing yet."""
    found, status = os.waitpid(tid, WALL | os.WNOHANG)
    return classify(tid, status) if found else None
