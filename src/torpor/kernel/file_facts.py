# SPDX-License-Identifier: Apache-2.0
"""stat(2) and utimensat(2) of files that are not Torpor's own, whose times may be any.

32-bit ARM: the C library's time_t, and so Python's, ends in January 2038.  os.stat fails with EOVERFLOW for a file with
a later time, os.utime with OverflowError; the kernel has statx(2) and utimensat_time64 for these.
"""

import ctypes
import errno
import os
import stat as st
import struct

from torpor.arch import native
from torpor.kernel.syscall import NR, call

_AT_FDCWD, _NO_FOLLOW, _EMPTY_PATH = -100, 0x100, 0x1000
_BASIC = 0x7FF  # STATX_BASIC_STATS
_SIZE = 256
# struct statx: mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask; four times (read,
# made, inode changed, written), each of seconds and nanoseconds; numbers of the devices
_FACTS = struct.Struct("=2IQ3IH2x4Q" + "qI4x" * 4 + "4I")
_UTIMENSAT = "utimensat_time64" if "utimensat_time64" in NR else "utimensat"


def far_stat(path: str | bytes | int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
    try:
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno != errno.EOVERFLOW:
            raise
    return statx(path, dir_fd, follow_symlinks)


def far_fstat(fd: int) -> os.stat_result:
    return far_stat(fd)


def far_lstat(path: str | bytes) -> os.stat_result:
    return far_stat(path, follow_symlinks=False)


def far_utime(
    path: str | bytes | int, *, ns: tuple[int, int], dir_fd: int | None = None, follow_symlinks: bool = True
) -> None:
    try:
        if isinstance(path, int):
            os.utime(path, ns=ns)
        else:
            os.utime(path, ns=ns, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    except OverflowError:
        utimensat(path, ns, dir_fd, follow_symlinks)


def statx(path: str | bytes | int, dir_fd: int | None, follow_symlinks: bool) -> os.stat_result:
    """What os.stat would return, if its times had room."""
    where, name, flags = _place(path, dir_fd, follow_symlinks)
    if isinstance(path, int):
        flags |= _EMPTY_PATH
    buffer = ctypes.create_string_buffer(_SIZE)
    try:
        call("statx", where, ctypes.addressof(name), flags, _BASIC, ctypes.addressof(buffer))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    _, block, _, links, uid, gid, mode, inode, size, blocks, _, *more = _FACTS.unpack_from(buffer)
    read, read_ns, _, _, changed, changed_ns, written, written_ns, *devices = more
    special, device = os.makedev(*devices[:2]), os.makedev(*devices[2:])
    times = [(read, read_ns), (written, written_ns), (changed, changed_ns)]
    return os.stat_result(
        (mode, inode, device, links, uid, gid, size, read, written, changed,
         *(sec + nsec / 10**9 for sec, nsec in times), *(sec * 10**9 + nsec for sec, nsec in times),
         block, blocks, special)
    )  # fmt: skip


def utimensat(path: str | bytes | int, ns: tuple[int, int], dir_fd: int | None, follow_symlinks: bool) -> None:
    """What os.utime would do: times of reading and of writing, in nanoseconds."""
    where, name, flags = _place(path, dir_fd, follow_symlinks)
    times = ctypes.create_string_buffer(struct.pack("=4q", *divmod(ns[0], 10**9), *divmod(ns[1], 10**9)), 32)
    address = 0 if isinstance(path, int) else ctypes.addressof(name)  # no name: the descriptor's file
    try:
        call(_UTIMENSAT, where, address, ctypes.addressof(times), flags)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _place(
    path: str | bytes | int, dir_fd: int | None, follow_symlinks: bool
) -> "tuple[int, ctypes.Array[ctypes.c_char], int]":
    if isinstance(path, int):
        return path, ctypes.create_string_buffer(b""), 0
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _AT_FDCWD if dir_fd is None else dir_fd, name, 0 if follow_symlinks else _NO_FOLLOW


def is_directory(path: str | bytes) -> bool:
    """As os.path.isdir, which takes a failing os.stat for no."""
    try:
        return st.S_ISDIR(stat(path).st_mode)
    except OSError:
        return False


stat, fstat, lstat, utime = far_stat, far_fstat, far_lstat, far_utime
if native().word_size == 8:  # half a microsecond less for each of thousands of descriptors
    stat, fstat, lstat, utime = os.stat, os.fstat, os.lstat, os.utime
