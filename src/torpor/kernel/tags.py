# SPDX-License-Identifier: Apache-2.0
"""Memory tags of aarch64 (MTE) by ptrace(2): one number from 0 to 15 for each 16 bytes of an area that is PROT_MTE.

Facts: Documentation/arch/arm64/memory-tagging-extension.rst; access_remote_tags() in arch/arm64/kernel/mte.c of Linux
6.12.  The thread must be stopped.  Protection does not matter, but nothing is put into a shared area that may not be
written.  The numbers of the requests mean other things on other architectures: ask `Arch.tags_memory` first.
"""

import ctypes
import errno

from torpor.kernel import ptrace

PEEKMTETAGS, POKEMTETAGS = 33, 34
GRANULE = 16  # bytes with one tag
AT_ONCE = 1 << 16  # tags of one request: a megabyte's


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _move(what: int, tid: int, address: int, buffer: "ctypes.Array[ctypes.c_char]") -> None:
    """The kernel may do less than it is asked to, and says how much.  Raises OSError."""
    at, left = ctypes.addressof(buffer), len(buffer)
    while left:
        vector = _Iovec(at, left)
        ptrace.request(what, tid, address, ctypes.addressof(vector))
        if not 0 < vector.length <= left:
            raise OSError(errno.EIO, f"the tags at {address:#x} cannot be reached")
        at, left, address = at + vector.length, left - vector.length, address + GRANULE * vector.length


def peek(tid: int, address: int, number: int) -> bytes:
    """The tags of `number` granules from `address` on, one in each byte.  Raises OSError."""
    buffer = ctypes.create_string_buffer(number)
    _move(PEEKMTETAGS, tid, address, buffer)
    return buffer.raw


def poke(tid: int, address: int, tags: bytes) -> None:
    """The other way round."""
    _move(POKEMTETAGS, tid, address, ctypes.create_string_buffer(tags, len(tags)))


def is_tagged(tid: int, address: int) -> bool:
    """Whether the area there is PROT_MTE.  The page is fetched, if there is none."""
    try:
        peek(tid, address, 1)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EIO):
            raise
        return False
    return True
