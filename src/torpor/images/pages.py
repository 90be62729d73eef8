# SPDX-License-Identifier: Apache-2.0
"""Pagemaps: which pages of an address space (or shared segment) a checkpoint has, and where.

A pagemap is a list of runs of pages in the order of their addresses.  Pages that are PRESENT stand back to back in
`pages-N.img`; those IN_PARENT are in the parent checkpoint, which may have its own parent; LAZY alone means that the
bytes stayed where the process was.  LAZY beside PRESENT only says that a page could come late: it changes nothing here.

What changed over time: runs without flags are present (or, by `in_parent`, in the parent), and the number of pages was
a u32, `compat_nr_pages`, which is now written as 0.
"""

from __future__ import annotations

import os

from torpor.errors import ImageError
from torpor.images.kinds import PAGEMAP, PAGES
from torpor.images.schema.pagemap import PagemapEntry, PagemapHead

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.images.directory import ImageReader, ImageWriter
    from torpor.images.kinds import ImageKind

PE_PARENT = 1
PE_LAZY = 2
PE_PRESENT = 4
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")  # images do not say whose: see AddressSpace in memory/restore.py
MAX_PARENTS = 1024  # a chain longer than this is a mistake or malice


class Run:
    """Neighbouring pages.  `offset` is where their bytes begin in the pages image, -1 if they are not there."""

    __slots__ = ("flags", "nr_pages", "offset", "vaddr")

    def __init__(self, vaddr: int, nr_pages: int, flags: int, offset: int = -1) -> None:
        self.vaddr, self.nr_pages, self.flags, self.offset = vaddr, nr_pages, flags, offset

    def __repr__(self) -> str:
        return f"Run({self.vaddr:#x}, {self.nr_pages}, {self.flags}, {self.offset})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


class PagemapWriter:
    """Collects the runs of one address space.  Add them in the order of their addresses, write the bytes of the PRESENT
    ones in the same order to pages-`pages_id`.img, then `finish`."""

    def __init__(
        self,
        images: ImageWriter,
        id: int,
        pages_id: int,
        kind: ImageKind[PagemapEntry] = PAGEMAP,
        page_size: int = PAGE_SIZE,
    ) -> None:
        self.images, self.kind, self.id, self.pages_id, self.page_size = images, kind, id, pages_id, page_size
        self.runs: list[Run] = []
        self.end = 0
        self.nr_present = 0

    def open_pages(self) -> int:
        """Make the pages image, or take the one that was prepared: all bytes of it must be written, or cut off."""
        return self.images.open_prepared(PAGES, self.pages_id)

    def add(self, vaddr: int, nr_pages: int, flags: int = PE_PRESENT) -> int:
        """Add a run; returns where its bytes belong in the pages image.  Joined to the one before where possible."""
        if vaddr < self.end or nr_pages <= 0 or vaddr % self.page_size:
            raise ValueError(f"{nr_pages} pages at {vaddr:#x} do not follow what ends at {self.end:#x}")
        offset = self.nr_present * self.page_size
        if vaddr == self.end and self.runs and self.runs[-1].flags == flags:
            self.runs[-1].nr_pages += nr_pages
        else:
            self.runs.append(Run(vaddr, nr_pages, flags, offset if flags & PE_PRESENT else -1))
        self.end = vaddr + nr_pages * self.page_size
        if flags & PE_PRESENT:
            self.nr_present += nr_pages
        return offset

    def blank(self, spans: list[tuple[int, int]]) -> None:
        """Before the image goes to the disk: put zeros in the place of the pages at these addresses, in order."""
        found, at = [], 0
        for start, end in spans:
            while at < len(self.runs) and self.runs[at].vaddr < end:
                run = self.runs[at]
                stop = run.vaddr + run.nr_pages * self.page_size
                first, last = max(start, run.vaddr), min(end, stop)
                if first < last and run.offset >= 0:
                    found.append((run.offset + first - run.vaddr, run.offset + last - run.vaddr))
                if stop > end:
                    break  # the next span may lie in it, too
                at += 1
        if found:
            self.images.blank(PAGES, self.pages_id, found)

    @property
    def size(self) -> int:
        """Of the pages image, with all runs that were added."""
        return self.nr_present * self.page_size

    def finish(self) -> None:
        """Write the pagemap image."""
        entries = (
            PagemapEntry(vaddr=run.vaddr, compat_nr_pages=0, flags=run.flags, nr_pages=run.nr_pages)
            for run in self.runs
        )
        self.images.write(self.kind, [PagemapHead(pages_id=self.pages_id), *entries], self.id)


class PagemapReader:
    """The runs of one pagemap, checked: in order, whole pages, none twice, all present ones in the pages image."""

    def __init__(
        self,
        images: ImageReader,
        id: int,
        kind: ImageKind[PagemapEntry] = PAGEMAP,
        page_size: int = PAGE_SIZE,
    ) -> None:
        self.images, self.id, self.kind, self.page_size = images, id, kind, page_size
        self.name = kind.file_name(id)
        entries = images.entries(kind, id)
        if not entries or not isinstance(entries[0], PagemapHead):
            raise ImageError(f"{self.name} is missing or empty", code="missing-image")
        self.pages_id = entries[0].pages_id
        self.runs: list[Run] = []
        self.nr_present = 0
        self._read_runs(entries[1:])
        self._starts = [run.vaddr for run in self.runs]
        if self.nr_present:
            os.close(self.open_pages())

    def _read_runs(self, entries: list[PagemapEntry]) -> None:
        end, size = 0, self.page_size
        for entry in entries:
            flags = entry.flags
            if flags is None:
                flags = PE_PARENT if entry.in_parent else PE_PRESENT
            count = entry.compat_nr_pages if entry.nr_pages is None else entry.nr_pages
            vaddr = entry.vaddr
            if vaddr % size or not 0 < count <= (1 << 64) // size or vaddr + count * size > 1 << 64:
                raise ImageError(f"{self.name} is mangled", f"{count} pages at {vaddr:#x} cannot be")
            if vaddr < end:
                raise ImageError(f"{self.name} is mangled", f"the pages at {vaddr:#x} are out of order or there twice")
            if not flags & (PE_PARENT | PE_LAZY | PE_PRESENT):
                raise ImageError(f"{self.name} is mangled", f"the pages at {vaddr:#x} are nowhere (flags {flags:#x})")
            end = vaddr + count * size
            if flags & PE_PRESENT:
                self.runs.append(Run(vaddr, count, flags, self.nr_present * size))
                self.nr_present += count
            else:
                self.runs.append(Run(vaddr, count, flags))

    @property
    def bytes_stored(self) -> int:
        """How many bytes this checkpoint itself holds of it."""
        return self.nr_present * self.page_size

    def open_pages(self) -> int:
        """A descriptor of the pages image, which is long enough for all runs."""
        fd = self.images.open_raw(PAGES, self.pages_id)
        size = os.fstat(fd).st_size
        if size < self.bytes_stored:
            os.close(fd)
            raise ImageError(
                f"{PAGES.file_name(self.pages_id)} is too short",
                f"it has {size} of the {self.bytes_stored} bytes that {self.name} tells of",
            )
        return fd

    def _inside(self, vaddr: int, end: int) -> Iterator[Run]:
        """What this pagemap has of the pages from `vaddr` to `end`, without gaps; ImageError where it has none."""
        from bisect import bisect_right  # only checkpoints that build on another come here

        at, size = max(bisect_right(self._starts, vaddr) - 1, 0), self.page_size
        while vaddr < end:
            run = self.runs[at] if at < len(self.runs) else None
            if run is None or not run.vaddr <= vaddr < run.vaddr + run.nr_pages * size:
                raise ImageError(f"{self.name} of a parent is incomplete", f"it lacks the page at {vaddr:#x}")
            skipped = vaddr - run.vaddr
            stop = min(end, run.vaddr + run.nr_pages * size)
            offset = run.offset + skipped if run.offset >= 0 else -1
            yield Run(vaddr, (stop - vaddr) // size, run.flags, offset)
            vaddr, at = stop, at + 1


class PageStore:
    """A pagemap and all its parents: where every page's bytes really are.  Owns the parents' directories."""

    def __init__(self, images: ImageReader, id: int, kind: ImageKind[PagemapEntry] = PAGEMAP) -> None:
        self.levels: list[PagemapReader] = [PagemapReader(images, id, kind)]
        self._parents: list[ImageReader] = []
        try:
            self.pieces = self._resolve()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for parent in self._parents:
            parent.close()
        self._parents.clear()

    def _resolve(self) -> list[tuple[Run, PagemapReader | None]]:
        """All runs in order, each with the pagemap in whose pages image it stands: None for a lazy one that has not
        been copied at all."""
        found: list[tuple[Run, PagemapReader | None]] = []
        open_ = self._sort(self.levels[0].runs, self.levels[0], found)
        while open_:
            parent = self._open_parent()
            pieces = [
                piece
                for run in open_
                for piece in parent._inside(run.vaddr, run.vaddr + run.nr_pages * parent.page_size)
            ]
            open_ = self._sort(pieces, parent, found)
        found.sort(key=lambda piece: piece[0].vaddr)
        return found

    def _sort(self, runs: list[Run], level: PagemapReader, found: list[tuple[Run, PagemapReader | None]]) -> list[Run]:
        """Put what is here into `found`, return what is in the parent."""
        above = []
        for run in runs:
            if run.flags & PE_PRESENT:
                found.append((run, level))
            elif run.flags & PE_PARENT:
                above.append(run)
            else:
                found.append((run, None))
        return above

    def _open_parent(self) -> PagemapReader:
        level = self.levels[-1]
        parent = level.images.parent()
        if parent is None:
            raise ImageError(f"{level.name} needs a parent checkpoint", "there is none", code="missing-image")
        self._parents.append(parent)
        me, seen = os.fstat(parent.dir_fd), [os.fstat(level.images.dir_fd) for level in self.levels]
        if len(seen) > MAX_PARENTS or any((me.st_dev, me.st_ino) == (it.st_dev, it.st_ino) for it in seen):
            raise ImageError(f"{level.name} needs a parent checkpoint", "the links to the parents go in a circle")
        self.levels.append(PagemapReader(parent, level.id, level.kind, level.page_size))
        return self.levels[-1]
