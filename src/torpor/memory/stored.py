# SPDX-License-Identifier: Apache-2.0
"""The memory that images hold of one address space, as the task sees it: its private pages, and at their places those
of the segments that it has mapped (`torpor.memory.segments`).  What images do not hold is zero."""

import os
from bisect import bisect_right

from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.memory import cow, segments
from torpor.memory.layout import Span
from torpor.memory.space import PROT_WRITE, is_shared_memory
from torpor.typed import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from torpor.images.pages import PagemapReader, PageStore
    from torpor.images.schema.vma import VmaEntry
    from torpor.memory.space import AddressSpace
    from torpor.resources.context import Restore


class Segments:
    """Pages of those that the tree's tasks have mapped, each looked up once."""

    def __init__(self, restore: "Restore") -> None:
        self._restore = restore
        self._stores: dict[int, PageStore] = {}

    def mapped(self, space: "AddressSpace") -> "list[tuple[VmaEntry, PageStore]]":
        """The areas that show one and may be written, which stacks are in; one that is empty shows nothing."""
        found = []
        for area in space.areas:
            if area.prot & PROT_WRITE and is_shared_memory(area):
                shmid = segments.shmid_of(self._restore, area)
                if shmid is None:
                    continue
                if shmid not in self._stores:
                    self._stores[shmid] = segments.pages(self._restore, shmid)
                found.append((area, self._stores[shmid]))
        return found

    def close(self) -> None:
        for store in self._stores.values():
            store.close()
        self._stores.clear()


class Stored:
    """`areas`: where memory is that is stored, or zero; `runs`: what is."""

    def __init__(self, space: "AddressSpace", shared: "Segments | None" = None) -> None:
        mapped = shared.mapped(space) if shared is not None else []
        self.areas = sorted((area.start, area.end) for area in [*space.private, *(area for area, _ in mapped)])
        self.runs = list(space.runs())
        if mapped:
            self.runs += [run for area, store in mapped for run in _shown(area, store)]
            self.runs.sort(key=lambda run: run.start)
        self._starts = [run.start for run in self.runs]
        self._open: dict[PagemapReader, int] = {}

    def spans(self) -> list[Span]:
        return [(run.start, run.end) for run in self.runs]

    def read(self, address: int, length: int) -> bytes:
        found = bytearray(length)
        end = address + length
        for run in self.runs[max(0, bisect_right(self._starts, address) - 1) : bisect_right(self._starts, end)]:
            first, last = max(run.start, address), min(run.end, end)
            if first < last:
                if run.level not in self._open:
                    self._open[run.level] = run.level.open_pages()
                data = os.pread(self._open[run.level], last - first, run.offset + first - run.start)
                found[first - address : first - address + len(data)] = data
        return bytes(found)

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def _shown(area: "VmaEntry", store: "PageStore") -> "Sequence[cow.Run]":
    """What an area shows of a segment's pages."""
    moved = area.start - area.pgoff
    found = []
    for run, level in store.pieces:
        first, last = moved + run.vaddr, moved + run.vaddr + run.nr_pages * PAGE
        if level is not None and first < area.end and last > area.start:
            whole = cow.Run(first, last - first, level, run.offset)
            found.append(whole.cut(max(first, area.start), min(last, area.end)))
    return found
