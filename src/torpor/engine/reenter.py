# SPDX-License-Identifier: Apache-2.0
"""Restored threads go back into the system calls in which they were interrupted: see `torpor.arch.interrupted`."""

from torpor.arch import interrupted
from torpor.arch.base import ERESTARTNOHAND, RESTARTED, Call
from torpor.engine.stops import Kind
from torpor.engine.timelimit import has_time_limit
from torpor.engine.tracee import ALL_SIGNALS, Tracee
from torpor.kernel import ptrace
from torpor.typed import Mapping, NamedTuple

CODE = 4  # bytes that the longest instruction for a system call has


class Inside(NamedTuple):
    """The call that a thread was interrupted in; `how`: the ERESTART number with which it ended; `general`: registers
    with which it is about to be made."""

    call: Call
    how: int
    general: bytes


def find(thread: Tracee, general: bytes, stored: tuple[int, int] | None, exact: bool) -> Inside | None:
    """What to put a thread into that is to get these registers; None: nothing.  `stored`: what the images have of
    `Arch.interruption`.  `exact`: they are Torpor's own, so that where they have nothing there was nothing."""
    arch = thread.arch
    if stored is None and exact and arch.images_tell:
        return None
    if not exact:
        general = _before_it_ended(thread, general)
    call = arch.call_at(general, thread.code(arch.pc(general), CODE))
    if call is None:
        return None
    if stored is None:
        how = interrupted.how(arch, call)
        if how and has_time_limit(arch, thread.pid, call.nr, call.args, thread.read):
            how = ERESTARTNOHAND
        return Inside(call, how, general) if how else None
    how, word = stored
    return Inside(call._replace(word=word) if word else call, how, general) if how in RESTARTED else None


def _before_it_ended(thread: Tracee, general: bytes) -> bytes:
    """Registers that make a call again which CRIU's stop has ended; else the same.  If the call lets signals in itself,
    and none waits, EINTR may be all that its caller waits for."""
    arch = thread.arch
    code = thread.code(arch.pc(general) - CODE, CODE)
    again = arch.ended_call(general, code)
    if again is None or (call := arch.call_at(again, code)) is None:
        return general
    lets_in = call.nr in arch.numbers_of(("epoll_pwait", "epoll_pwait2")) and call.args[4]
    return general if lets_in and not thread.awaiting() else again


def enter(thread: Tracee, inside: Inside) -> tuple[bytes, Mapping[int, bytes]]:
    """Take the thread to where it can get the registers that are returned: general ones, and whole sets."""
    arch = thread.arch
    thread.leave_call_stop(always=True)
    harmless = arch.before_call(inside.general, inside.call)
    if harmless is not None:
        ptrace.set_signal_mask(thread.tid, ALL_SIGNALS)
        thread.set_general(harmless)
        _to_call_stop(thread)  # its beginning
        ptrace.interrupt(thread.tid)  # it ends at once, though it might want to wait
        _to_call_stop(thread)
    return arch.inside_call(inside.general, inside.call, inside.how)


def _to_call_stop(thread: Tracee) -> None:
    ptrace.cont_to_call(thread.tid)
    while (stop := thread.wait()).kind != Kind.CALL:
        ptrace.cont_to_call(thread.tid, thread.surprise(stop))
