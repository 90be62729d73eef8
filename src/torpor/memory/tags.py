# SPDX-License-Identifier: Apache-2.0
"""Tagged memory of aarch64 (MTE): each 16 bytes of an area that is PROT_MTE have a tag, a number from 0 to 15, and who
reads or writes them by a pointer with another number in its bits 56 to 59 is told so by SIGSEGV, if the thread wants
that checked (its mode is one of its register sets, NT_ARM_TAGGED_ADDR_CTRL).

Which areas are tagged is said in torpor-PID.img, and which pages have tags that are not all 0; the tags themselves are
in torpor-tags-PID.img, two in a byte.  Tags belong to pages, so those of shared memory are stored once, whoever maps
it; of a file on tmpfs, too, where it is mapped for writing.  A page of which nothing is stored has tags that are all 0,
unless it is of such a file, or of a SysV segment, which may be there at restore and have others.

Surprises.  The kernel, too, checks the pointers that it is given: a thread that checks tags cannot write tagged memory
into an image by a pointer without a tag (EFAULT, or SIGSEGV a little later where its mode is asynchronous).  Its mode
is left alone, and the engine copies these areas through /proc/PID/mem, which knows no tags: so nothing has to be undone
whatever happens.  At restore, memory is filled while no thread checks anything yet, and the tags come afterwards, but
before children are forked: a page keeps its tags when it is copied.  A child that has other tags than its parent in the
same page gets a page of its own.  PROT_MTE cannot be taken from an area again, and mprotect(2) keeps it.
"""

import os

from torpor.arch import native
from torpor.errors import ImageError
from torpor.images import kinds
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.kernel import ptrace
from torpor.kernel.process import statfs_type
from torpor.kernel.tags import AT_ONCE, GRANULE, is_tagged, peek, poke
from torpor.memory.areas import KERNEL_KINDS, is_private_memory
from torpor.memory.layout import PROT_MTE
from torpor.memory.segments import data_runs
from torpor.typed import TYPE_CHECKING, Iterable, Iterator, NamedTuple, Sequence

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee
    from torpor.images.directory import ImageReader, ImageWriter
    from torpor.images.schema.torpor import TagRunEntry
    from torpor.images.schema.vma import VmaEntry
    from torpor.kernel.maps import Area
    from torpor.memory.cow import Run
    from torpor.memory.dump import AddressSpace
    from torpor.memory.layout import Span
    from torpor.memory.space import AddressSpace as RestoredSpace

PER_PAGE = PAGE // GRANULE
STORED = PER_PAGE // 2  # bytes for a page in the image
PROT_WRITE = 2
TMPFS = 0x01021994  # statfs(2)
_NONE = bytes(STORED)


def pack(tags: bytes) -> bytes:
    """Two tags in a byte, the first in its lower half."""
    low, high = int.from_bytes(tags[::2], "little"), int.from_bytes(tags[1::2], "little")
    return (low | high << 4).to_bytes(len(tags) // 2, "little")


_LOW = bytes(byte & 15 for byte in range(256))
_HIGH = bytes(byte >> 4 for byte in range(256))


def unpack(stored: bytes) -> bytes:
    tags = bytearray(2 * len(stored))
    tags[::2], tags[1::2] = stored.translate(_LOW), stored.translate(_HIGH)
    return bytes(tags)


# -- dump -------------------------------------------------------------------------------------------------------------


def read(spaces: "Iterable[AddressSpace]") -> None:
    """Frozen, and nothing runs in any task: read the tags of all pages that will be stored.  Raises Refusal."""
    seen: set[tuple[object, ...]] = set()  # shared memory that another task has told of
    for space in spaces:
        leader = space.task.leader
        copied: list[Span] = []
        checks = leader.arch.checks_tags(leader.registers())
        for area, kind, runs in _with_runs(space):
            if not is_tagged(leader.tid, runs[0][0]):
                continue
            key = area.dev, area.inode, area.offset, area.size
            if not area.shared:
                copied.append((area.start, area.end))
            elif key in seen:
                continue
            # What a page gets at restore, until it has tags of its own: in anonymous memory, 0.
            zeros = area.has_file and not (area.shared and kind in ("shmem", "memfd"))
            found = [one for start, end in runs for one in _read_run(leader.tid, start, end, zeros)]
            if area.shared and kind == "file" and not area.prot & PROT_WRITE:
                if area.deleted and any(any(tags) for _, tags, _ in found):
                    raise space.task.refusal(
                        f"area {area.start:#x}-{area.end:#x} {area.path}: it has memory tags, and may not be written",
                        "map the file for writing",
                    )  # fmt: skip
                continue  # its tags stay with the file
            if area.shared:
                seen.add(key)
            space.tags += found
        if checks and copied:
            space.leave_to_engine(copied)


def _with_runs(space: "AddressSpace") -> "Iterator[tuple[Area, str, list[Span]]]":
    """The areas that have pages to look at, their kinds, and these pages."""
    runs, at = space.runs, 0
    for area, kind in zip(space.task.areas, space.kinds, strict=True):
        found: list[Span] = []
        while at < len(runs) and runs[at][0] < area.end:
            found.append((runs[at][0], runs[at][1]))
            at += 1
        if kind in KERNEL_KINDS:
            continue
        if area.shared and kind in ("shmem", "memfd", "sysv", "file"):
            found = _shared_runs(space.task.leader.tid, area)
        if found:
            yield area, kind, found


def _shared_runs(tid: int, area: "Area") -> "list[Span]":
    """The parts of a shared area behind which there are pages, which another task may have made."""
    try:
        fd = os.open(f"/proc/{tid}/map_files/{area.start:x}-{area.end:x}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # a device, say
        return []
    try:
        if statfs_type(fd) != TMPFS:
            return []
        moved = [(area.start + start - area.offset, area.start + end - area.offset) for start, end in data_runs(fd)]
    finally:
        os.close(fd)
    return [(max(s, area.start), min(e, area.end)) for s, e in moved if s < area.end and e > area.start]


def _read_run(tid: int, start: int, end: int, zeros: bool) -> list[tuple[int, bytes, bool]]:
    """(address, tags, whether pages count whose tags are all 0)"""
    found = []
    while start < end:
        number = min(AT_ONCE, (end - start) // GRANULE)
        tags = peek(tid, start, number)
        if zeros or tags.count(0) < number:
            found.append((start, tags, zeros))
        start += GRANULE * number
    return found


def save(images: "ImageWriter", space: "AddressSpace") -> "list[TagRunEntry]":
    """After the thaw: write torpor-tags-PID.img; what is in it."""
    from torpor.images.schema.torpor import TagRunEntry

    if not space.tags:
        return []
    entries: list[TagRunEntry] = []
    with os.fdopen(images.open_raw(kinds.TORPOR_TAGS, space.task.pid), "wb", buffering=1 << 20) as file:
        for start, tags, zeros in sorted(space.tags):
            for address, page in _by_page([(start, pack(tags))]):
                if page == _NONE and not zeros:
                    continue
                file.write(page)
                if entries and entries[-1].start + entries[-1].pages * PAGE == address:
                    entries[-1].pages += 1
                else:
                    entries.append(TagRunEntry(start=address, pages=1))
    images.bytes_written += STORED * sum(entry.pages for entry in entries)
    return entries


def _by_page(tags: "Iterable[tuple[int, bytes]]") -> "Iterator[tuple[int, bytes]]":
    for start, data in tags:
        for at in range(0, len(data), STORED):
            yield start + at // STORED * PAGE, data[at : at + STORED]


# -- restore ----------------------------------------------------------------------------------------------------------


class Tagged(NamedTuple):
    """Stored tags: of `pages` pages from `start` on, at `offset` in the image."""

    start: int
    pages: int
    offset: int

    @property
    def end(self) -> int:
        return self.start + self.pages * PAGE


class Tags:
    """All tags of one task, checked."""

    def __init__(self, images: "ImageReader", space: "RestoredSpace") -> None:
        """Also marks the tagged areas: their `prot` has PROT_MTE from then on.  Raises ImageError, Refusal."""
        self._images, self._pid = images, space.task.pid
        extras = space.extras
        starts = set(extras.tagged) if extras else set()
        self.runs = self._checked(extras.tags if extras else [], [a for a in space.areas if a.start in starts])
        if starts and not native().tags_memory():
            raise space.task.refusal(
                "its memory is tagged (PROT_MTE), which this processor or kernel cannot do",
                "restore it on one that can, or run the program without: GLIBC_TUNABLES=glibc.mem.tagging=0",
                code="cpu-feature",
            )  # fmt: skip
        for area in space.areas:
            if area.start in starts:
                area.prot |= PROT_MTE

    def _checked(self, entries: "Iterable[TagRunEntry]", areas: "list[VmaEntry]") -> list[Tagged]:
        runs: list[Tagged] = []
        offset = end = at = 0
        for entry in entries:
            run = Tagged(entry.start, entry.pages, offset)
            if run.start % PAGE or not run.pages or run.start < end:
                raise self._mangled(f"the tags at {run.start:#x} cannot be")
            end, offset = run.end, offset + run.pages * STORED
            start = run.start  # a run may go on in the next area
            while start < end:
                while at < len(areas) and areas[at].end <= start:
                    at += 1
                if at == len(areas) or areas[at].start > start:
                    raise self._mangled(f"no tagged area is at {start:#x}")
                start = areas[at].end
            runs.append(run)
        if runs:
            fd = self._images.open_raw(kinds.TORPOR_TAGS, self._pid)
            try:
                if os.fstat(fd).st_size != offset:
                    raise self._mangled("it has not as many tags as torpor-PID.img says")
            finally:
                os.close(fd)
        return runs

    def _mangled(self, why: str) -> ImageError:
        return ImageError(f"{kinds.TORPOR_TAGS.file_name(self._pid)} is mangled", why)

    def within(self, areas: "Sequence[VmaEntry]") -> "Iterator[tuple[Tagged, VmaEntry]]":
        """Each run with each of these areas (sorted) in which some of it is."""
        at = 0
        for run in self.runs:
            while at < len(areas) and areas[at].end <= run.start:
                at += 1
            look = at
            while look < len(areas) and areas[look].start < run.end:
                yield run, areas[look]
                look += 1

    def read(self, areas: "Iterable[VmaEntry]") -> "Iterator[tuple[int, bytes]]":
        """(address, tags as stored) of pages in these areas (sorted), a megabyte at most at a time."""
        fd = self._images.open_raw(kinds.TORPOR_TAGS, self._pid) if self.runs else -1
        try:
            for run, area in self.within(list(areas)):
                start, end = max(run.start, area.start), min(run.end, area.end)
                while start < end:
                    size = min(AT_ONCE // 2, (end - start) // PAGE * STORED)
                    data = os.pread(fd, size, run.offset + (start - run.start) // PAGE * STORED)
                    if len(data) != size:
                        raise self._mangled("it is too short")
                    yield start, data
                    start += size // STORED * PAGE
        finally:
            if fd >= 0:
                os.close(fd)


def private(space: "RestoredSpace") -> "Iterator[tuple[int, bytes]]":
    """Tags of the task's own pages, where nothing was inherited."""
    return space.tags.read(area for area in space.areas if is_private_memory(area))


def differences(
    space: "RestoredSpace", parent: "RestoredSpace", kept: "Sequence[VmaEntry]"
) -> "Iterator[tuple[int, bytes]]":
    """The same for a child that has inherited pages with their parent's tags in the areas `kept`: what differs."""
    theirs = dict(_by_page(parent.tags.read(kept)))
    mine = dict(_by_page(private(space)))
    for page in sorted(theirs.keys() | mine.keys()):
        if page in mine:
            if mine[page] != theirs.get(page):
                yield page, mine[page]
        elif _has(space.runs(), page):
            yield page, _NONE


def _has(runs: "list[Run]", page: int) -> bool:
    """Whether this page is stored."""
    from bisect import bisect_right

    at = bisect_right(runs, page, key=lambda run: run.start) - 1
    return at >= 0 and page < runs[at].end


def shared(space: "RestoredSpace") -> "tuple[list[VmaEntry], Iterator[tuple[int, bytes]]]":
    """Shared areas for which there are tags, and these."""
    areas = [area for area in space.areas if area.prot & PROT_MTE and not is_private_memory(area)]
    found = {area.start for _, area in space.tags.within(areas)}
    return [area for area in areas if area.start in found], space.tags.read(areas)


def put(tracee: "Tracee", tags: "Iterable[tuple[int, bytes]]") -> None:
    """Set the tags of a task whose executor waits for a program."""
    for start, stored in tags:
        tracee.stop_program()
        poke(tracee.tid, start, unpack(stored))
    if tracee.stopped:
        ptrace.cont(tracee.tid)
        tracee.stopped = False
