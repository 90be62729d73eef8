# SPDX-License-Identifier: Apache-2.0
"""/proc/TID/syscall: the system call that a thread is in (proc_pid_syscall in fs/proc/base.c).

- A thread that sleeps or has been stopped in a call shows its number and six registers, in which arguments are passed,
  however many the call takes; outside of any, -1 for the number, and no registers.  Whoever neither sleeps nor is
  stopped is "running".
- aarch64 and 32-bit ARM forget the call before they stop: there -1, or rubbish, is shown of a stopped thread.
- On 32-bit ARM, and for 32-bit tasks elsewhere, a register is 32 bits wide.
"""

from torpor.kernel.procfs import ParseError, read_all
from torpor.typed import NamedTuple

OUTSIDE, RUNNING = -1, -2


class SeenCall(NamedTuple):
    """`number` may be OUTSIDE (no `args` then) or RUNNING (nothing else is known)."""

    number: int
    args: tuple[int, ...] = ()
    sp: int = 0
    pc: int = 0
    proven: bool = False  # it is also the call in which the thread was stopped (`engine.entered`)
    sleeps: int = -1  # how often the thread had gone to sleep when it was seen; -1: nobody has asked


UNSEEN = SeenCall(OUTSIDE)


def parse_call(data: bytes) -> SeenCall:
    if data == b"running\n":
        return SeenCall(RUNNING)
    try:
        number, *rest = data.split()
        *args, sp, pc = [int(word, 16) for word in rest]
        if len(args) != (0 if number == b"-1" else 6):
            raise ValueError
        return SeenCall(int(number), tuple(args), sp, pc)
    except ValueError:
        raise ParseError("syscall", data) from None


def parse_number(data: bytes) -> int:
    """Of what `parse_call` finds the number alone."""
    number = data.partition(b" ")[0].rstrip()
    try:
        return RUNNING if number == b"running" else int(number)
    except ValueError:
        raise ParseError("syscall", data) from None


def seen_number(tid: int) -> int:
    """As `seen_call`, in less time."""
    return parse_number(read_all(f"/proc/{tid}/syscall"))


def sleeps(tid: int) -> int:
    """How often a thread has left the processor by itself, to sleep or to stop; -1: it has ended."""
    try:
        data = read_all(f"/proc/{tid}/status")
    except OSError:
        return -1
    _, found, rest = data.partition(b"\nvoluntary_ctxt_switches:")
    return int(rest.split(None, 1)[0]) if found else -1


def seen_call(tid: int) -> SeenCall:
    """Raises OSError (it has ended, or may not be looked at) and ParseError."""
    return parse_call(read_all(f"/proc/{tid}/syscall"))
