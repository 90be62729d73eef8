# SPDX-License-Identifier: Apache-2.0
"""Raw system calls of Torpor's own process.

Python's os module lacks most of what checkpointing needs, so `syscall` calls the C library's syscall(2) and raises
OSError.  `NR` maps names to this machine's numbers.
"""

import ctypes
import os

from torpor.arch import native

NR = native().SYSCALLS

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = [ctypes.c_long] * 7  # declared: half the time of making a c_long of each
_syscall.restype = ctypes.c_long
_NONE = (0,) * 6
_mmap = _libc.mmap
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_mmap.restype = ctypes.c_void_p
_FAILED = ctypes.c_void_p(-1).value


def syscall(nr: int, *args: int) -> int:
    """Make system call `nr`; integers (addresses too) only.  Raises OSError."""
    result: int = _syscall(nr, *args, *_NONE[len(args) :])
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name: str, *args: int) -> int:
    """`syscall` by name: ``call("getpid")``."""
    return syscall(NR[name], *args)


def map_memory(size: int, protection: int, flags: int, fd: int = -1, at: int | None = None) -> int:
    """mmap(2), through libc: s390x takes its arguments in memory, 32-bit ARM counts the offset in pages."""
    found: int | None = _mmap(at, size, protection, flags, fd, 0)
    if found is None or found == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found
