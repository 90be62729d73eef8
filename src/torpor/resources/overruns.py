# SPDX-License-Identifier: Apache-2.0
"""How often periodic POSIX timers have fired without being heard: the overruns behind a pending or a taken signal.

A timer has one signal at most in the queue.  While it is pending, the kernel counts further periods, and tells them
only to whoever takes the signal.  So it is taken, and the timer set to an absolute time in the past from which it has
fired just as often: it fires at once, the signal is pending again, and the count goes on where it was.  The same brings
it back at restore.  Where that is not safe (the same signal is queued more than once, CPU clocks, a thread's own
timer) the signal comes back with a count of 0.
"""

import struct
import time

from torpor.arch import native
from torpor.engine.program import Program
from torpor.kernel import ptrace
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.images.schema.timer import PosixTimerEntry
    from torpor.kernel.proc import Timer
    from torpor.resources.context import DumpTask

SI_TIMER = -2
# struct siginfo: si_signo, si_errno, si_code; aligned as a pointer, si_timerid, si_overrun; si_value; si_sys_private
_WORD = native().word_size
SIGINFO = struct.Struct("=iiiii" if _WORD == 4 else "=iii4xii")
_OVERRUN, _PRIVATE = (16, 24) if _WORD == 4 else (20, 32)
# struct itimerspec (interval, value) and timespec: of 64-bit numbers on 32-bit machines, too (`Arch.SYSCALLS`)
SPEC, _TIME = struct.Struct("=4q"), struct.Struct("=2q")
TIMER_ABSTIME = 1
CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI = 0, 1, 7, 11
CLOCKS = frozenset({CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI})
SECOND = 10**9
_MEANWHILE = 10 * SECOND  # until it fires anyway, should the dump die in between


class Notice(NamedTuple):
    """A timer's pending signal."""

    signal: int
    timer: int
    overrun: int


def notice(info: bytes) -> Notice | None:
    """What a siginfo says of a timer; None: it is of something else."""
    signo, _, code, timer, overrun = SIGINFO.unpack_from(info)
    return Notice(signo, timer, overrun) if code == SI_TIMER else None


def with_overrun(info: bytes, overrun: int) -> bytes:
    """The same siginfo with another count; without what the kernel keeps in it for itself (si_sys_private)."""
    data = bytearray(info)
    struct.pack_into("=i", data, _OVERRUN, min(overrun, 0x7FFFFFFF))
    struct.pack_into("=i", data, _PRIVATE, 0)
    return bytes(data)


def peek_again(task: "DumpTask", timers: "list[Timer]") -> None:
    """Pending signals by now, of the process and of threads that timers notify, into task.pending."""
    leader = task.leader
    running = not leader.stopped  # its executor waits for the next program
    if running:
        leader.stop_program()
    for tid in {0, *(timer.target for timer in timers if timer.to_thread)}:
        found = ptrace.peek_signals(tid or leader.tid, shared=not tid)
        numbers = {SIGINFO.unpack_from(info)[0] for info in found}
        kept = [info for info in task.pending.get(tid, []) if SIGINFO.unpack_from(info)[0] not in numbers]
        if found or kept:
            task.pending[tid] = found + kept
    if running:
        ptrace.cont(leader.tid)
        leader.stopped = False


def count_pending(task: "DumpTask", timers: "list[Timer]") -> None:
    """At dump: learn the overruns behind pending signals of the process, and put them into task.pending."""
    queue = task.pending.get(0, [])
    known = {timer.id: timer for timer in timers}
    for at, info in enumerate(queue):
        found = notice(info)
        timer = known.get(found.timer) if found is not None else None
        if found is None or timer is None or timer.clock not in CLOCKS or timer.to_thread:
            continue
        others = [i for i in queue if SIGINFO.unpack_from(i)[0] == found.signal]
        if len(others) == 1 and not task.thread_statuses[task.leader.tid].pending >> found.signal - 1 & 1:
            queue[at] = with_overrun(info, _take(task, timer) or 0)


def _take(task: "DumpTask", timer: "Timer") -> int | None:
    """Take the signal, read the count, let it be pending again.  None: the timer is not periodic."""
    program = Program()
    now = program.space(SPEC.size)
    program.call("timer_gettime", timer.id, now)
    task.run(program)
    isec, insec, _, _ = SPEC.unpack(now.data)
    period = isec * SECOND + insec
    if not period:
        return None
    program = Program()
    mask, info, none = program.put(struct.pack("=Q", 1 << timer.signal - 1)), program.space(128), program.space(16)
    program.call("rt_sigtimedwait", mask, info, none, 8)
    soon = program.put(_spec(period, max(period, _MEANWHILE)))
    old, clock = program.space(SPEC.size), program.space(_TIME.size)
    program.call("timer_settime", timer.id, 0, soon, old)
    program.call("clock_gettime", timer.clock, clock)
    task.run(program)
    _, _, vsec, vnsec = SPEC.unpack(old.data)
    sec, nsec = _TIME.unpack(clock.data)
    overrun: int = SIGINFO.unpack_from(info.data)[4]
    first = (sec + vsec) * SECOND + nsec + vnsec - (overrun + 1) * period
    program = Program()
    program.call("timer_settime", timer.id, TIMER_ABSTIME, program.put(_spec(period, max(first, 1))), 0)
    task.run(program)
    return overrun


def arm(timer: "PosixTimerEntry", overrun: int, program: Program) -> bool:
    """At restore: let a periodic timer's signal be pending with so many overruns.  False: it cannot be done so."""
    period = timer.isec * SECOND + timer.insec
    first = time.clock_gettime_ns(timer.clock_id) + timer.vsec * SECOND + timer.vnsec - (overrun + 1) * period
    if first <= 0:
        return False
    program.call("timer_settime", timer.it_id, TIMER_ABSTIME, program.put(_spec(period, first)), 0)
    return True


def is_suited(timer: "PosixTimerEntry") -> bool:
    """Whether `arm` may work: periodic, armed, on a clock that we can read."""
    return bool((timer.isec or timer.insec) and (timer.vsec or timer.vnsec) and timer.clock_id in CLOCKS)


def take(timer: "PosixTimerEntry", program: Program) -> None:
    """At restore, after `arm`: the signal was taken before the dump; only its count is still there."""
    mask = program.put(struct.pack("=Q", 1 << timer.si_signo - 1))
    second = program.put(struct.pack("=2l" if _WORD == 4 else "=2q", 1, 0))
    program.call("rt_sigtimedwait", mask, 0, second, 8)


def _spec(period: int, value: int) -> bytes:
    return SPEC.pack(*divmod(period, SECOND), *divmod(value, SECOND))
