# SPDX-License-Identifier: Apache-2.0
"""Pages that parent and child share: what a forked child has to read, and what it has to forget.

CRIU's images do not say which pages were shared, so contents are compared, by bytes objects (11 GB/s; memoryviews make
0.3).
"""

import os

from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.typed import TYPE_CHECKING, Iterator, NamedTuple, Sequence

if TYPE_CHECKING:
    from torpor.images.pages import PagemapReader

BLOCK = 1 << 18

Span = tuple[int, int]


class Run(NamedTuple):
    """Stored pages: `length` bytes for address `start`, at `offset` in the pages image of `level`."""

    start: int
    length: int
    level: "PagemapReader"
    offset: int

    @property
    def end(self) -> int:
        return self.start + self.length

    def cut(self, start: int, end: int) -> "Run":
        return Run(start, end - start, self.level, self.offset + start - self.start)


def differences(parents: Sequence[Run], own: Sequence[Run], kept: Sequence[Span]) -> tuple[list[Run], list[Span], int]:
    """For a child that inherited its parent's pages within `kept` spans: the runs that it must read itself, the spans
    that it must forget (the parent has pages there, the child none), and how many bytes both have, which are compared.
    All sorted by address."""
    theirs = list(_clip(parents, kept))
    read: list[Run] = []
    forget: list[Span] = []
    compared = 0
    descriptors: dict[int, int] = {}
    try:
        at = 0
        for run in own:
            position = run.start
            while position < run.end:
                while at < len(theirs) and theirs[at].end <= position:
                    at += 1
                other = theirs[at] if at < len(theirs) else None
                if other is None or other.start >= run.end:
                    _append(read, run.cut(position, run.end))
                    break
                if other.start > position:
                    _append(read, run.cut(position, other.start))
                    position = other.start
                end = min(run.end, other.end)
                compared += end - position
                for part in _unequal(run.cut(position, end), other.cut(position, end), descriptors):
                    _append(read, part)
                position = end
    finally:
        for fd in descriptors.values():
            os.close(fd)
    at = 0
    for other in theirs:
        position = other.start
        while at < len(own) and own[at].end <= position:
            at += 1
        look = at
        while position < other.end:
            if look == len(own) or own[look].start >= other.end:
                forget.append((position, other.end))
                break
            if own[look].start > position:
                forget.append((position, own[look].start))
            position = max(position, own[look].end)
            look += 1
    return read, forget, compared


def _clip(runs: Sequence[Run], spans: Sequence[Span]) -> Iterator[Run]:
    at = 0
    for run in runs:
        while at < len(spans) and spans[at][1] <= run.start:
            at += 1
        look = at
        while look < len(spans) and spans[look][0] < run.end:
            start, end = max(run.start, spans[look][0]), min(run.end, spans[look][1])
            yield run.cut(start, end)
            look += 1


def _append(runs: list[Run], run: Run) -> None:
    if runs:
        last = runs[-1]
        if last.end == run.start and last.level is run.level and last.offset + last.length == run.offset:
            runs[-1] = Run(last.start, last.length + run.length, last.level, last.offset)
            return
    runs.append(run)


def _unequal(a: Run, b: Run, descriptors: dict[int, int]) -> Iterator[Run]:
    """The parts of `a` whose pages differ from `b`'s (same addresses)."""
    if a.level is b.level and a.offset == b.offset:
        return
    for at in range(0, a.length, BLOCK):
        size = min(BLOCK, a.length - at)
        mine, other = _bytes(a, at, size, descriptors), _bytes(b, at, size, descriptors)
        if mine == other:
            continue
        for page in range(0, size, PAGE):
            if mine[page : page + PAGE] != other[page : page + PAGE]:
                yield a.cut(a.start + at + page, a.start + at + page + PAGE)


def _bytes(run: Run, at: int, size: int, descriptors: dict[int, int]) -> bytes:
    fd = descriptors.get(id(run.level))
    if fd is None:
        fd = descriptors[id(run.level)] = run.level.open_pages()
    return os.pread(fd, size, run.offset + at)


def split(runs: Sequence[Run], spans: Sequence[Span]) -> tuple[list[Run], list[Run]]:
    """Runs outside of the spans, and inside of them; both sorted by address."""
    if not spans:
        return list(runs), []
    inside = list(_clip(runs, spans))
    gaps = zip([0, *(end for _, end in spans)], [*(start for start, _ in spans), 1 << 64], strict=True)
    return list(_clip(runs, [(start, end) for start, end in gaps if start < end])), inside


def by_level(runs: Sequence[Run]) -> "list[tuple[PagemapReader, list[Run]]]":
    """Runs by the pages image that has them."""
    found: dict[int, tuple[PagemapReader, list[Run]]] = {}
    for run in runs:
        found.setdefault(id(run.level), (run.level, []))[1].append(run)
    return list(found.values())


def groups(runs: Sequence[Run], count: int, size: int) -> Iterator[list[Run]]:
    """Runs that one preadv may read: neighbours in the image, `count` and `size` bytes at most."""
    group: list[Run] = []
    total = 0
    for whole in runs:
        for start in range(whole.start, whole.end, size):
            run = whole.cut(start, min(whole.end, start + size))
            if group and (
                len(group) == count or total + run.length > size or group[-1].offset + group[-1].length != run.offset
            ):
                yield group
                group, total = [], 0
            group.append(run)
            total += run.length
    if group:
        yield group
