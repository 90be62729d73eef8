# SPDX-License-Identifier: Apache-2.0
"""Which pages of an address space have to be stored: the PAGEMAP_SCAN ioctl of /proc/PID/pagemap (Linux 6.7), or
the file itself where the ioctl is missing (Documentation/admin-guide/mm/pagemap.rst).

What a private area's page can be, and what it means here:

- never touched: not in the page tables; not stored.
- present and PAGE_IS_FILE: still the file's own page; the file brings it back.  Not stored.
- present and PAGE_IS_PFNZERO: read but never written, a zero page (or the huge one).  Not stored.
  But in a private mapping of a file it stands for zeros that were written there, and that KSM has merged
  (use_zero_pages): `zero_runs`.
- otherwise present, or swapped out (migrating pages look so too): the task's own content.  Stored.

Surprising:

- A guard page (MADV_GUARD_INSTALL, 6.13) is a marker in the page table, and markers count as SWAPPED.  It has no
  content: whoever reads it gets EFAULT.  PAGE_IS_GUARD and bit 58 came only in 6.15; before, the marker is told by
  the swap type and offset that pagemap shows, which are learnt here from a guard page of our own.
- The write-protect markers that a userfaultfd leaves on untouched pages (UFFD_FEATURE_WP_UNPOPULATED) count as
  SWAPPED too.  They are told in the same way, by `markers`, where a tracker needs it.
- One scan may cover many areas and the holes between them.  Runs of equal categories are merged across the border of
  two areas, so they are cut again here.  The end must lie inside the user's half of the address space, else EFAULT.
- The ioctl's walk_end is often wrong: the kernel sets it each time that its inner buffer of 512 regions is
  full, and leaves it there when the walk then runs to its end.  Whoever goes on from there sees pages twice.  So: less
  regions than there was room for means the end, and else all is known up to the last region's end at least.
- The file of a task whose address space is gone can be opened on older kernels, and reads as empty.
"""

import fcntl
import mmap
import os
import struct

from torpor.kernel.ioctls import iowr
from torpor.kernel.pagemap_file import (
    WHOLE_ENTRY,
    Run,
    address,
    append,
    chunks,
    entries,
    same,
    stored_runs,
    subtract,
)
from torpor.typed import TYPE_CHECKING, Iterable, Iterator, NamedTuple, Protocol, Sequence

if TYPE_CHECKING:
    from torpor.kernel.zero_pages import Block

# include/uapi/linux/fs.h
PAGEMAP_SCAN = iowr("f", 16, 96)  # struct pm_scan_arg
PAGE_IS_WPALLOWED = 1 << 0
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6
PAGE_IS_SOFT_DIRTY = 1 << 7
PAGE_IS_GUARD = 1 << 8
PM_SCAN_WP_MATCHING = 1 << 0
PM_SCAN_CHECK_WPASYNC = 1 << 1

MADV_GUARD_INSTALL = 102

PAGE = mmap.PAGESIZE
REGIONS = 4096  # in one ioctl
GAP = 16 << 20  # a populated area that nobody wants is scanned in passing if it is smaller than this

_ARG = struct.Struct("=12Q")  # struct pm_scan_arg
# struct page_region[].  (No array: that module imports all of `collections`.)
_MEMORY = mmap.mmap(-1, 24 * REGIONS, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_VECTOR = memoryview(_MEMORY).cast("Q")


class Span(Protocol):
    """Anything with a start and an end, such as maps.Area."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


class Abilities(NamedTuple):
    """What this kernel's pagemap can do, found by trying it on pages of our own."""

    scan: bool  # the ioctl is there
    guard: bool  # it knows PAGE_IS_GUARD
    guard_entry: int | None  # pagemap entry of a guard page; None: no guard pages here.  Bit 58 may be in it
    zeros: "Sequence[Block]"  # the zero pages' frames, where the ioctl is missing and pagemap tells us PFNs


_abilities: Abilities | None = None


def abilities() -> Abilities:
    """Probe once."""
    global _abilities
    if _abilities is None:
        _abilities = _probe()
    return _abilities


def _probe() -> Abilities:
    fd = open_pagemap("self")
    page = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        at = address(page)
        scan = guard = True
        try:
            ioctl_scan(fd, at, at + PAGE, anyof=PAGE_IS_PRESENT)
        except OSError:
            scan = guard = False
        try:
            if scan:
                ioctl_scan(fd, at, at + PAGE, anyof=PAGE_IS_GUARD)
        except OSError:
            guard = False
        guard_entry = None
        try:
            page.madvise(MADV_GUARD_INSTALL)
        except OSError:
            pass
        else:
            guard_entry = entries(fd, at, at + PAGE)[0]
        zeros: Sequence[Block] = ()
        if not scan:
            from torpor.kernel import zero_pages

            zeros = zero_pages.learn(fd)
        return Abilities(scan, guard, guard_entry, zeros)
    finally:
        page.close()
        os.close(fd)


def open_pagemap(pid: int | str) -> int:
    """A descriptor of /proc/PID/pagemap; needs ptrace rights on the task.  ESRCH: it has no memory (a zombie)."""
    return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def ioctl_scan(
    fd: int,
    start: int,
    end: int,
    *,
    inverted: int = 0,
    mask: int = 0,
    anyof: int = 0,
    returned: int = 0,
    flags: int = 0,
) -> list[tuple[int, int, int]]:
    """The ioctl itself, continued to `end`: runs of (start, end, categories & returned) of the pages that match.

    A page matches if, with the bits of `inverted` flipped in its categories, it has all of `mask` and, unless `anyof`
    is 0, any of `anyof`.  `flags`: PM_SCAN_WP_MATCHING write-protects what matches (userfaultfd in async mode).
    """
    found: list[tuple[int, int, int]] = []
    for words in _regions(fd, start, end, flags, inverted, mask, anyof, returned):
        found += zip(words[::3], words[1::3], words[2::3], strict=True)
    return found


def _regions(fd: int, start: int, end: int, flags: int, *categories: int) -> Iterator[list[int]]:
    """The regions of one ioctl after the other, flat: start, end, categories, start, ..."""
    vector = _VECTOR
    where = address(_MEMORY)
    while start < end:
        arg = bytearray(_ARG.pack(96, flags, start, end, 0, where, REGIONS, 0, *categories))
        count = fcntl.ioctl(fd, PAGEMAP_SCAN, arg)
        if count:
            words = vector[: 3 * count].tolist()
            yield words
        if count < REGIONS:
            break
        (walked,) = struct.unpack_from("=Q", arg, 32)
        start = max(walked, words[-2])


def scan(fd: int, start: int, end: int, how: Abilities | None = None, guards: list[Run] | None = None) -> list[Run]:
    """Runs of pages of the private area [start, end) that must be stored, in order.  `fd`: see `open_pagemap`.

    `guards`: a list to which the runs of guard pages are added; it saves the walk of `guard_runs`.
    """
    how = how or abilities()
    runs: list[Run] = []
    if how.scan:
        out = PAGE_IS_PFNZERO | PAGE_IS_FILE
        told = PAGE_IS_GUARD if how.guard else 0
        for words in _regions(fd, start, end, 0, out, out, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, told):
            found = zip(words[::3], words[1::3], strict=True)
            if any(words[2::3]):
                for run, guard in zip(found, words[2::3], strict=True):
                    if not guard:
                        runs.append(run)
                    elif guards is not None:
                        guards.append(run)
            else:
                runs += found
        if how.guard or how.guard_entry is None:
            return runs
    else:
        runs = stored_runs(fd, start, end, how.zeros, how.guard_entry)
        if how.guard_entry is None:
            return runs
    if how.scan or guards is not None:
        known = guard_runs(fd, start, end, how)
        runs = subtract(runs, known)
        if guards is not None:
            guards += known
    return runs


def scan_all(
    fd: int,
    areas: Sequence[Span],
    others: Sequence[Span] = (),
    how: Abilities | None = None,
    guards: list[Run] | None = None,
) -> list[list[Run]]:
    """`scan` for many areas at once, in a few ioctls: for each of `areas` (sorted, disjoint) its list of runs.

    `others`: areas of the same address space that are not wanted, sorted.  Large ones are stepped around, so that
    their populated page tables are not walked.  `guards`: as for `scan`; only those inside `areas`.
    """
    if not areas:
        return []
    how = how or abilities()
    big = [other.start for other in others if other.end - other.start >= GAP]
    runs: list[Run] = []
    found: list[Run] | None = None if guards is None else []
    at = 0  # in `big`
    start, end = areas[0].start, areas[0].end
    for area in areas[1:]:
        while at < len(big) and big[at] < end:
            at += 1
        # Without the ioctl a hole costs as much as an area, so nothing is joined.
        if (at < len(big) and big[at] < area.start) or (not how.scan and area.start != end):
            runs += scan(fd, start, end, how, found)
            start = area.start
        end = area.end
    runs += scan(fd, start, end, how, found)
    if guards is not None and found:
        for inside in _clip(found, areas):
            guards += inside
    return _clip(runs, areas)


def _clip(runs: Sequence[Run], areas: Sequence[Span]) -> list[list[Run]]:
    """For each area the runs inside it: they may lie in the holes between, and across several areas.  Linear."""
    result: list[list[Run]] = [[] for _ in areas]
    index, last, area = 0, len(areas) - 1, areas[0]
    for a, b in runs:
        while area.end <= a:
            if index == last:
                return result
            index += 1
            area = areas[index]
        while True:
            low = a if a > area.start else area.start
            high = b if b < area.end else area.end
            if low < high:
                result[index].append((low, high))
            if b <= area.end or index == last:
                break
            index += 1
            area = areas[index]
    return result


def zero_runs(fd: int, start: int, end: int, how: Abilities | None = None) -> list[Run]:
    """Runs of zero pages in [start, end), as far as they can be told."""
    how = how or abilities()
    if how.scan:
        return [(a, b) for a, b, _ in ioctl_scan(fd, start, end, mask=PAGE_IS_PFNZERO)]
    from torpor.kernel import zero_pages

    found: list[Run] = []
    for a, data in chunks(fd, start, end):
        for first, last in zero_pages.runs(data, how.zeros):
            append(found, a + first * PAGE, a + last * PAGE)
    return found


def guard_runs(fd: int, start: int, end: int, how: Abilities | None = None) -> list[Run]:
    """Runs of guard pages (MADV_GUARD_INSTALL) in [start, end); empty where the kernel has none."""
    how = how or abilities()
    if how.guard_entry is None:
        return []
    if how.guard:
        found = ioctl_scan(fd, start, end, inverted=0, mask=PAGE_IS_GUARD)
        return [(a, b) for a, b, _ in found]
    return markers(fd, start, end, how.guard_entry, how)


def markers(fd: int, start: int, end: int, entry: int, how: Abilities | None = None) -> list[Run]:
    """Runs of pages in [start, end) whose pagemap entry is exactly `entry`, a marker's."""
    how = how or abilities()
    spans: Iterable[Run] = [(start, end)]
    if how.scan:  # markers count as swapped, so look at swapped pages only
        spans = [(a, b) for a, b, _ in ioctl_scan(fd, start, end, mask=PAGE_IS_SWAPPED)]
    runs: list[Run] = []
    for first, last in spans:
        for a, data in chunks(fd, first, last):
            for run in same(data, entry, WHOLE_ENTRY):
                append(runs, a + run[0] * PAGE, a + run[1] * PAGE)
    return runs
