# SPDX-License-Identifier: Apache-2.0
"""Restored threads go back into the system calls in which they were interrupted: see `torpor.arch.interrupted`."""

from torpor.arch import interrupted
from torpor.arch.base import RESTARTED, Call
from torpor.engine.stops import Kind
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
        general = arch.ended_call(general, _code(thread, arch.pc(general) - CODE)) or general
    call = arch.call_at(general, _code(thread, arch.pc(general)))
    if call is None:
        return None
    if stored is None:
        how = interrupted.how(arch, call)
        return Inside(call, how, general) if how else None
    how, word = stored
    return Inside(call._replace(word=word) if word else call, how, general) if how in RESTARTED else None


def _code(thread: Tracee, address: int) -> bytes:
    try:
        return thread.read(max(address, 0), CODE)
    except (OSError, OverflowError):
        return b""  # at the end of an area, or nowhere


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
