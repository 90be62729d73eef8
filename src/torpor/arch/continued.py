# SPDX-License-Identifier: Apache-2.0
"""Which call a thread is in that was interrupted in restart_syscall(2).

By that the kernel continues nanosleep, clock_nanosleep, poll, and a futex waited for with a time limit, after a stop
(ERESTART_RESTARTBLOCK): it keeps to itself which of them, and shows the number of restart_syscall.  An image can hold
only the call itself, and one that the thread has not made must never be run: so a call is begun anew only if it loses
nothing by that (`Arch.loses_nothing`), and is told by its arguments.  These are there still, and no other of the four
could have slept with them: with such, it would have failed, or could not be continued.

The number that the instructions in front of the call load is no proof.  Compilers let several calls end in one
instruction, which is reached by jumps.  Of a futex until a point in time only poll cannot be told for certain: there,
the instructions have to say futex, too, and its last argument to be what C libraries give.

Where nothing is certain, the call fails with EINTR, as it does for CRIU; the live thread is left as it was found.
"""

import struct

from torpor.arch.base import Arch
from torpor.typed import Callable, Sequence

_FUTEX_COMMAND, _FUTEX_FLAGS, _FUTEX_WAIT, _FUTEX_WAIT_BITSET = 0x7F, 0x180, 0, 9
_TIMER_ABSTIME, _CLOCKS, _ANY_BIT = 1, 16, 0xFFFFFFFF
_M32 = 0xFFFFFFFF
_SECOND = 1000000000


def call(arch: Arch, args: Sequence[int], read: Callable[[int, int], bytes], claimed: int | None = None) -> int:
    """The number of the call that a thread with these arguments is in, if it can be begun anew; -1: nobody can say.
    `read`: memory at an address, empty where there is none.  `claimed`: what instructions say, where poll exists."""
    fitting = [name for name, fit in _FITS.items() if name in arch.SYSCALLS and fit(arch, args, read)]
    certain = fitting[0] if len(fitting) == 1 else ""
    if fitting == ["poll", "futex"] and args[5] & _M32 == _ANY_BIT:
        certain = "futex" if claimed == arch.SYSCALLS["futex"] else ""
    number = arch.SYSCALLS.get(certain, -1)
    if claimed is not None and claimed != number:
        return -1
    return number if number >= 0 and arch.loses_nothing(number, args[1]) else -1


def fits(arch: Arch, number: int, args: Sequence[int], read: Callable[[int, int], bytes]) -> bool:
    """Whether a thread with these arguments can be in call `number`, where the instruction itself says that it is."""
    return any(arch.SYSCALLS.get(name) == number and fit(arch, args, read) for name, fit in _FITS.items())


def _poll(arch: Arch, args: Sequence[int], read: Callable[[int, int], bytes]) -> bool:
    """There is an array of pollfds, of eight bytes each, in which nothing has happened yet."""
    count = args[1] & _M32
    return not count or all(read(args[0] + 8 * i, 8)[6:] == bytes(2) for i in (0, count - 1))


def _futex(arch: Arch, args: Sequence[int], read: Callable[[int, int], bytes]) -> bool:
    operation = args[1] & _M32
    command = operation & _FUTEX_COMMAND
    if operation & ~(_FUTEX_COMMAND | _FUTEX_FLAGS) or command not in (_FUTEX_WAIT, _FUTEX_WAIT_BITSET):
        return False
    if args[0] % 4 or not read(args[0], 4) or (command == _FUTEX_WAIT_BITSET and not args[5] & _M32):
        return False
    limit = read(args[3], 16) if args[3] else b""
    return bool(limit) and struct.unpack(arch.word[0] + "2q", limit)[1] in range(_SECOND)


def _nanosleep(arch: Arch, args: Sequence[int], read: Callable[[int, int], bytes]) -> bool:
    """It has been interrupted, so what is left could be written where it wants that."""
    return bool(read(args[0], 16)) and (not args[1] or bool(read(args[1], 16)))


def _clock_nanosleep(arch: Arch, args: Sequence[int], read: Callable[[int, int], bytes]) -> bool:
    """Until a point in time it is not continued, but made again."""
    clock = args[0] & _M32
    if args[1] & _TIMER_ABSTIME or not (clock < _CLOCKS or clock >> 31):
        return False
    return bool(read(args[2], 16)) and (not args[3] or bool(read(args[3], 16)))


_FITS = {"poll": _poll, "futex": _futex, "nanosleep": _nanosleep, "clock_nanosleep": _clock_nanosleep}
