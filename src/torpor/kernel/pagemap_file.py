# SPDX-License-Identifier: Apache-2.0
"""Reading /proc/PID/pagemap itself, 8 bytes a page, where PAGEMAP_SCAN is missing (pagemap.rst); and runs of pages.

No loop over the pages: the top bytes of all entries, translated to yes or no, are a string in which a regular
expression finds the runs: 10 to 20 ms for the entries of 1 GB.
"""

import mmap
import os
import struct
import sys

from torpor.typed import TYPE_CHECKING, Iterable, Sequence

if TYPE_CHECKING:
    from torpor.kernel.zero_pages import Block

# bits of a pagemap entry: of its top byte, and of the whole
TOP_PRESENT, TOP_SWAPPED, TOP_FILE, TOP_GUARD = 0x80, 0x40, 0x20, 0x04
PRESENT, PFN_MASK = 1 << 63, (1 << 55) - 1
SOFT_DIRTY = 1 << 55  # all that an entry says of a place without a page, in an area that is new
WHOLE_ENTRY = (1 << 64) - 1

LITTLE = sys.byteorder == "little"
TOP = 7 if LITTLE else 0  # where in an entry its top byte is
PAGE = mmap.PAGESIZE

Run = tuple[int, int]

_ENTRIES = 1 << 17  # pages read at a time: 1 MiB of entries


def _stored(top: int) -> bool:
    return bool(top & (TOP_PRESENT | TOP_SWAPPED)) and not top & (TOP_FILE | TOP_GUARD)


_STORED = bytes(ord("y") if _stored(top) else ord("n") for top in range(256))


def address(memory: mmap.mmap) -> int:
    import ctypes

    view = ctypes.c_char.from_buffer(memory)
    return ctypes.addressof(view)


def entries(fd: int, start: int, end: int) -> tuple[int, ...]:
    data = os.pread(fd, (end - start) // PAGE * 8, start // PAGE * 8)
    return struct.unpack(f"={len(data) // 8}Q", data)


def chunks(fd: int, start: int, end: int) -> Iterable[tuple[int, bytes]]:
    """(Address, entries) of what has any page; where nothing is, which may be terabytes, entries are compared only."""
    room = min(_ENTRIES, (end - start) // PAGE) * 8
    buffer = bytearray(room)
    empty = [struct.pack("=Q", entry) * (room // 8) for entry in (0, SOFT_DIRTY)]
    while start < end:
        left = (end - start) // PAGE * 8
        if left < room:
            del buffer[left:]
            empty = [entries[:left] for entries in empty]
        size = os.preadv(fd, [buffer], start // PAGE * 8)
        if not size:
            return  # the address space is gone
        if size < len(buffer) or buffer not in empty:
            yield start, bytes(memoryview(buffer)[:size])
        start += size // 8 * PAGE


def same(data: bytes, entry: int, mask: int) -> list[Run]:
    """Index runs of the entries that equal `entry` under `mask`, which has the six low bytes in full."""
    runs: list[Run] = []
    skip = 0 if LITTLE else 2
    low = struct.pack("=Q", entry)[skip : skip + 6]
    at = data.find(low)
    while at >= 0:
        index, off = divmod(at, 8)
        if off == skip and (struct.unpack_from("=Q", data, index * 8)[0] ^ entry) & mask == 0:
            append(runs, index, index + 1)
        at = data.find(low, at + 1)
    return runs


def append(runs: list[Run], start: int, end: int) -> None:
    if runs and runs[-1][1] == start:
        runs[-1] = (runs[-1][0], end)
    else:
        runs.append((start, end))


def stored_runs(fd: int, start: int, end: int, zeros: "Sequence[Block]", guard_entry: int | None) -> list[Run]:
    """`pagemap.scan` from the file.

    Zero pages that cannot be told (no PFNs, huge ones) are stored.
    """
    import re

    from torpor.kernel import zero_pages

    runs: list[Run] = []
    for a, data in chunks(fd, start, end):
        found = [match.span() for match in re.finditer(b"y+", data[TOP::8].translate(_STORED))]
        if found:
            found = subtract(found, zero_pages.runs(data, zeros))
        if found and guard_entry is not None and not guard_entry >> 56 & TOP_GUARD:
            found = subtract(found, same(data, guard_entry, WHOLE_ENTRY))
        for first, last in found:
            append(runs, a + first * PAGE, a + last * PAGE)
    return runs


def subtract(runs: Sequence[Run], holes: Sequence[Run]) -> list[Run]:
    """`runs` without what `holes` cover; both sorted and disjoint, linear."""
    if not holes:
        return list(runs)
    left: list[Run] = []
    at = 0
    for run in runs:
        a, b = run
        while at < len(holes) and holes[at][1] <= a:
            at += 1
        i = at
        while i < len(holes) and holes[i][0] < b:
            if a < holes[i][0]:
                left.append((a, holes[i][0]))
            a = max(a, holes[i][1])
            i += 1
        if a < b:
            left.append((a, b))
    return left
