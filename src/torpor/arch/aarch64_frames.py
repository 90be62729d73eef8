# SPDX-License-Identifier: Apache-2.0
"""Signal frames of aarch64 that another CPU's kernel, or another kernel, has made.

Behind the general registers is a list of records, each with a magic number and its size; what finds no room is in an
area of its own.  A kernel writes a record of everything that the CPU has, used or not, and ends a process that returns
by a frame with a record that it does not know, or of which the CPU has no registers, or with vectors of another length
than the thread's.  An unused record gets the length that this kernel writes; or it becomes one of a kind that every
kernel skips (of a fault's cause): records stay where they are, as handlers may remember where they have seen them.

Facts: arch/arm64/kernel/signal.c and include/uapi/asm/sigcontext.h of Linux 6.1 and 6.12.
"""

import struct

from torpor.arch.base import CannotReturn, Frame, Memory
from torpor.typed import Iterator, NamedTuple

_SP, _RECORDS = 128 + 176 + 256, 128 + 176 + 288  # of struct rt_sigframe: stack pointer, counter, state; the list
_FPSIMD, _ESR, _EXTRA, _SVE, _ZA, _ZT = 0x46508001, 0x45535201, 0x45585401, 0x53564501, 0x54366345, 0x5A544E01
_FIRST = struct.pack("<II", _FPSIMD, 528)
_MODE = 0x1F  # of the processor's state: 0 is a 64-bit user program
_HEADER = 16  # of SVE's record and ZA's: magic number, size, length of a vector; for SVE flags
_STREAMING = 1
_ROOM, _MOST = 4096, 1 << 17  # of the list; of an area for more
_NAMES = {_SVE: "SVE", _ZA: "SME's array ZA", _ZT: "SME2's ZT0", 0x54504902: "TPIDR2", 0x46504D52: "FPMR",
          0x504F4530: "permission overlays", 0x47435300: "a guarded control stack"}  # fmt: skip


class Record(NamedTuple):
    at: int
    magic: int
    size: int


def find(stack: bytes, base: int, memory: Memory) -> Iterator[Frame]:
    at = stack.find(_FIRST)
    while at >= 0:
        start = at - _RECORDS
        if start >= 0 and not (base + start) % 16:
            sp, pc, state = struct.unpack_from("<3Q", stack, start + _SP)
            frame = Frame(base + at, pc, sp, memory)
            if not state & _MODE and records(frame):
                yield frame
        at = stack.find(_FIRST, at + 1)


def records(frame: Frame) -> list[Record]:
    """The list; empty where it has no end."""
    found: list[Record] = []
    at, end, more = frame.at, frame.at + _ROOM, (0, 0)
    while at + 8 <= end:
        magic, size = struct.unpack("<II", frame.memory(at, 8))
        if not magic and not size:
            if not more[0]:
                return found
            (at, end), more = more, (0, 0)
            continue
        if size < 16 or size % 16 or at + size > end:
            break
        found.append(Record(at, magic, size))
        if magic == _EXTRA:
            where, length = struct.unpack("<QI", frame.memory(at + 8, 12))
            more = (where, where + min(length, _MOST))
        at += size
    return []


def has(own: Frame) -> tuple[bool, bool]:
    """Whether there are records of SVE and of SME."""
    ours = {record.magic for record in records(own)}
    return _SVE in ours, _ZA in ours


def mended(frame: Frame, own: Frame) -> Iterator[tuple[int, bytes]]:
    ours = {record.magic: _length(own, record) for record in records(own)}
    for record in records(frame):
        at, magic, size = record
        if magic in (_FPSIMD, _ESR, _EXTRA):
            continue
        if magic in (_SVE, _ZA):
            length = _length(frame, record)
            kind = _ZA if magic == _SVE and _is_streaming(frame, record) else magic
            if ours.get(kind) == length:
                continue
            if size > _HEADER:
                raise CannotReturn(f"vectors of {length} bytes" if kind in ours else _NAMES[kind])
            if kind in ours:
                yield at + 8, struct.pack("<H", ours[kind])
                continue
        elif magic in ours or (magic == _ZT and _ZA in ours):
            continue  # ZT0 is only there while ZA is in use
        elif any(frame.memory(at + 8, size - 8)):
            raise CannotReturn(_NAMES.get(magic, f"registers of a kind that Torpor does not know ({magic:#x})"))
        yield at, struct.pack("<I", _ESR)


def _length(frame: Frame, record: Record) -> int:
    """Of a vector, in bytes, where the record is of any."""
    return int(struct.unpack("<H", frame.memory(record.at + 8, 2))[0])


def _is_streaming(frame: Frame, record: Record) -> bool:
    return bool(struct.unpack("<H", frame.memory(record.at + 10, 2))[0] & _STREAMING)
