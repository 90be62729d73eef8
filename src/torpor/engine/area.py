# SPDX-License-Identifier: Apache-2.0
"""The memory that an executor needs inside a task, laid out.

Code lies on one page of its own, mapped r-x.  Every thread that runs programs has a data area:

    header   struct area of arch/executor.c
    frame    a signal frame with all that the thread was found with; rt_sigreturn takes it
    stack    a little
    undo     two slots for the undo program (the other one is written while one is in force)
    work     the program, its results, its data

When the controller dies, the executor's read sees end-of-file: it runs the undo program and goes home by sigreturn.
"""

import struct

from torpor.arch.base import Arch, Registers

PAGE = 65536  # a multiple of every page size we meet (4K, 64K), so that code and data never share a page
HEADER = 64
_STACK = 1024


def _up(value: int, step: int) -> int:
    return (value + step - 1) // step * step


class Area:
    """Addresses of one thread's data area that begins at `base`."""

    def __init__(self, arch: Arch, base: int, size: int, frame_size: int, undo_room: int) -> None:
        self.arch, self.base, self.size = arch, base, size
        self.frame = base + HEADER
        self.stack_top = _up(self.frame + frame_size, 64) + _STACK
        self.undo = (self.stack_top, self.stack_top + undo_room)
        self.undo_room = undo_room
        self.work = self.stack_top + 2 * undo_room
        self.room = base + size - self.work
        if self.room < 1024:
            raise AssertionError("area too small")

    def fds_address(self) -> int:
        return self.base

    def header(self, reply_fd: int, wait_fd: int, tag: int, home: int) -> bytes:
        order, code = self.arch.word[0], self.arch.word[1]
        return struct.pack(f"{order}ii4{code}", reply_fd, wait_fd, tag, self.work, 0, home).ljust(HEADER, b"\0")

    def undo_pointer(self) -> int:
        """Address of header.undo."""
        return self.base + 8 + 2 * self.arch.word_size

    def home_frame(self, registers: Registers, mask: int) -> tuple[bytes, int]:
        return self.arch.signal_frame(registers, mask, self.frame)


def frame_size(arch: Arch, registers: Registers) -> int:
    return len(arch.signal_frame(registers, 0, 1 << 20)[0])
