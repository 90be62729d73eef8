# SPDX-License-Identifier: Apache-2.0
"""Zero pages in /proc/PID/pagemap, for kernels that do not name them (PAGE_IS_PFNZERO came with PAGEMAP_SCAN, 6.7).

Private memory that was read but never written has the kernel's zero page in its page tables, and pagemap tells the
page's frame number to whoever has CAP_SYS_ADMIN.

Surprising: there may be several.  s390x has 4 to 128 side by side (arch/s390/mm/init.c, setup_zero_pages), MIPS up to
8; the lowest bits of a page's number choose one, for the caches' sake.  mremap(2) moves the entry as it is, so that any
of them may be found at any address.
"""

import mmap
import re

from torpor.kernel.pagemap_file import LITTLE, PAGE, PFN_MASK, Run, address, entries
from torpor.typed import Iterable, NamedTuple, Sequence


class Block(NamedTuple):
    """Frames that differ in the lowest byte only.  No loop over the pages: each of an entry's bytes has its table."""

    common: bytes  # five bytes of an entry, one after the other, which all of the frames have
    tables: tuple[bytes, ...]  # for bytes.translate: 1 where this byte of an entry may be a zero page's, else 0


def learn(fd: int) -> tuple[Block, ...]:
    """The zero pages' frames, from pages of ours that are only read; none if they are not told.  `fd`: our pagemap."""
    for pages in (2, 256, 2048):  # two are enough where there is but one zero page
        with mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            try:
                memory.madvise(mmap.MADV_NOHUGEPAGE)
            except OSError:
                pass  # a kernel without huge pages
            _ = memory[::PAGE]
            start = address(memory)
            frames = shared([entry & PFN_MASK for entry in entries(fd, start, start + len(memory))])
        if frames is not None:
            return blocks(frames - {0})  # 0: no CAP_SYS_ADMIN
    return ()


def shared(frames: Sequence[int]) -> set[int] | None:
    """The frames of adjacent pages, if both halves have the same ones.

    Else None: there are more zero pages than half the pages, or these are no zero pages but our own, whose frames will
    be somebody else's content tomorrow.
    """
    half = len(frames) // 2
    found = set(frames[:half])
    return found if found == set(frames[half:]) else None


def blocks(frames: set[int], little: bool = LITTLE) -> tuple[Block, ...]:
    """What `runs` needs to know them by."""
    found = []
    for high in sorted({frame >> 8 for frame in frames}):
        tables = [_table(frame & 0xFF for frame in frames if frame >> 8 == high)]
        tables += [_table([high >> shift & 0xFF]) for shift in range(0, 40, 8)]
        tables.append(_table([high >> 40, high >> 40 | 0x80]))  # 0x80: soft-dirty
        tables.append(_table(range(0x80, 0xC0)))  # present, and not swapped
        common = (high & (1 << 40) - 1).to_bytes(5, "little")
        found.append(Block(common, tuple(tables)) if little else Block(common[::-1], tuple(reversed(tables))))
    return tuple(found)


def _table(accepted: Iterable[int]) -> bytes:
    table = bytearray(256)
    for byte in accepted:
        table[byte] = 1
    return bytes(table)


def runs(data: bytes, known: Sequence[Block]) -> list[Run]:
    """Index runs of the entries that are of one of these frames."""
    marks = 0  # a byte for each entry
    for block in known:
        if block.common in data:
            here = -1
            for at, table in enumerate(block.tables):
                here &= int.from_bytes(data[at::8].translate(table), "little")
            marks |= here
    if not marks:
        return []
    return [match.span() for match in re.finditer(b"\1+", marks.to_bytes(len(data) // 8, "little"))]
