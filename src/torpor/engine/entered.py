# SPDX-License-Identifier: Apache-2.0
"""Which call our stop has ended with EINTR, where the kernel forgets that before it stops a thread (aarch64, armv7).

What /proc/TID/syscall showed before the stop does not say it alone.  A moment lies between, and a thread that reads
from two sockets in turn may be in the same call by then, but with the other socket.  The kernel keeps the first
argument with which a thread entered it last.  armv7 shows it; on aarch64 some kernels do (Debian's 6.1, not 6.12): in
/proc/TID/syscall, once the thread has been given the number of a call again (NT_ARM_SYSTEM_CALL).

Where a handler has returned to a call that it had ended, the kernel was entered last by rt_sigreturn, and what it keeps
is rubbish.  So it counts only of a thread that was seen in this very call, or where no handler can have returned.

Where the kernel does not show it, a thread was interrupted in the call in which it was seen asleep, if it has left its
processor by itself once since then: in its stop, and not to sleep in another call.  (It might, in some microseconds
between our look and the interrupt, have been woken, returned, and been caught just before it slept in the next; nothing
would tell.  So reads and writes of sockets are not made again there: EINTR is better than another socket's data.)
"""

import errno
import os
import struct

from torpor.kernel import ptrace
from torpor.kernel.inside import RUNNING, SeenCall, seen_call, sleeps
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.arch.base import Arch, Call
    from torpor.engine.thread import StoppedThread

_OF_THE_LIBRARY = 1 << 32 - 1 | 1 << 33 - 1  # the C library's own: to cancel threads, and setuid(2) for all of them
_BELOW = 32768  # bytes of stack: in these lies the frame of a handler that has just returned
_PAGE = 4096  # none is smaller
VOUCHED = -2  # instead of the number of sleeps: somebody has compared it already


def note(arch: "Arch", tid: int) -> SeenCall:
    """In which call a thread is, before it is interrupted."""
    seen = seen_call(tid)
    if arch.number_regset and (
        seen.number == RUNNING or (seen.args and arch.ends_by_a_stop(seen.number, seen.args[0]))
    ):
        so_far = sleeps(tid)  # before it is looked at once more
        seen = seen_call(tid)._replace(sleeps=so_far)
    return seen


def vouched(seen: SeenCall, tid: int) -> SeenCall:
    """The same, of a thread in its first stop since it was seen, or on which nobody has laid hands yet; for when it has
    gone on, into another stop."""
    return seen._replace(sleeps=VOUCHED) if _slept_on(seen, tid) or _sleeps_still(seen, tid) else seen


def _sleeps_still(seen: SeenCall, tid: int) -> bool:
    try:
        return 0 <= seen.sleeps == sleeps(tid) and seen_call(tid)[:4] == seen[:4]
    except OSError:
        return False  # it has ended


def _slept_on(seen: SeenCall, tid: int) -> bool:
    return seen.sleeps == VOUCHED or (seen.sleeps >= 0 and sleeps(tid) == seen.sleeps + 1)


def prove(thread: "StoppedThread", general: bytes, before: SeenCall) -> SeenCall:
    """`before`, or the call in which the thread was stopped, `proven`.  To be asked before anything is run in it."""
    arch = thread.arch
    call = arch.may_have_ended(general)
    if call is None:
        return before
    first = _kept(thread.tid, arch.number_regset, call) if arch.number_regset else call.args[0]
    told = first is not None
    if first is None:
        first = before.args[0] if before.args else 0
    now = SeenCall(call.nr, (first, *call.args[1:6]), arch.sp(general), arch.pc(general), proven=True)
    if now[:4] == before[:4]:
        sure = told or (arch.ends_by_any_stop(call.nr, first) and _slept_on(before, thread.tid))
        return now if sure else before
    return now if told and not _may_have_returned(thread, now) else before


def _kept(tid: int, regset: int, call: "Call") -> int | None:
    """The first argument with which a thread entered the kernel last; None: this kernel shows the result instead."""
    none = ptrace.get_regset(tid, regset)
    ptrace.set_regset(tid, regset, struct.pack("=i", call.nr))
    try:
        seen = seen_call(tid)
    finally:
        ptrace.set_regset(tid, regset, none)
    if not seen.args:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # it has just been killed
    return seen.args[0] if seen.args[0] != call.args[0] else None


def _may_have_returned(thread: "StoppedThread", now: SeenCall) -> bool:
    """Whether a handler may have returned to where the thread is."""
    if thread.caught() & ~_OF_THE_LIBRARY:
        return True

    def memory(address: int, length: int) -> bytes:
        return thread.code(address, length).ljust(length, b"\0")

    stack, at = b"", now.sp
    while now.sp - at < _BELOW:
        start = (at - 1) & -_PAGE
        if not (piece := thread.code(start, at - start)):
            break
        stack, at = piece + stack, start
    return any((frame.pc, frame.sp) == (now.pc, now.sp) for frame in thread.arch.signal_frames(stack, at, memory))
