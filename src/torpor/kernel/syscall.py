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
_syscall.restype = ctypes.c_long
_Long = ctypes.c_long


def syscall(nr: int, *args: int) -> int:
    """Make system call `nr`; integers (addresses too) only.  Raises OSError."""
    result: int = _syscall(_Long(nr), *[_Long(a) for a in args])
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name: str, *args: int) -> int:
    """`syscall` by name: ``call("getpid")``."""
    return syscall(NR[name], *args)
