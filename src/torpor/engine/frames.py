# SPDX-License-Identifier: Apache-2.0
"""Signal frames of another kernel, on the stacks of restored threads.

A thread that was dumped inside a signal handler returns from it by a frame that the old kernel has written.  Where
another kernel would not take that (`Arch.frames_vary`), it is written over before the thread runs.  Frames are looked
for from a thread's stack pointer up, on its alternate stack, and from the stack pointers up that the frames hold: a
handler may have interrupted another.  Not found are those on stacks that a program has switched away from by itself,
from within a handler.
"""

from bisect import bisect_right

from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.kernel.proc import INFINITY
from torpor.memory.layout import Span
from torpor.typed import TYPE_CHECKING, Iterator

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee
    from torpor.memory.space import AddressSpace

WINDOW = 1 << 20  # bytes that are looked at together: what a mangled image calls a stack may be all memory
FRAME = 1 << 10  # no frame has more


class Stacks:
    """Those in one address space, which has all its memory back."""

    def __init__(self, space: "AddressSpace", tracee: "Tracee") -> None:
        self._tracee, self._areas = tracee, [(area.start, area.end) for area in space.private]
        self._stored: list[Span] = []
        for run, _ in space.pages.pieces:  # neighbours stand apart where a parent checkpoint has one of them
            joined = self._stored and self._stored[-1][1] == run.vaddr
            first = self._stored.pop()[0] if joined else run.vaddr
            self._stored.append((first, run.vaddr + run.nr_pages * PAGE))
        self._seen: dict[int, int] = {}  # of an area, by its start: from where up it has been looked at
        self.mended = 0

    def mend(self, pointers: list[int]) -> None:
        """Look at the stacks that these point into."""
        while pointers:
            for start, end in self._unseen(pointers.pop()):
                for window in range(start, end, WINDOW):
                    self._look(max(start, window - FRAME), min(end, window + WINDOW), pointers)

    def _look(self, start: int, end: int, pointers: list[int]) -> None:
        stack = self._tracee.read(start, end - start)
        for at, frame, pointer in self._tracee.arch.mended_frames(stack):
            self._tracee.write(start + at, frame)
            self.mended += 1
            pointers.append(pointer)

    def _unseen(self, pointer: int) -> Iterator[Span]:
        """The stored memory from there up that was not looked at."""
        at = bisect_right(self._areas, (pointer, INFINITY)) - 1
        if at < 0 or pointer >= self._areas[at][1]:
            return
        area, end = self._areas[at]
        end = self._seen.get(area, end)
        self._seen[area] = min(pointer, end)
        for run in range(max(0, bisect_right(self._stored, (pointer, INFINITY)) - 1), len(self._stored)):
            first, last = self._stored[run]
            if first >= end:
                return
            if max(first, pointer) < min(last, end):
                yield max(first, pointer), min(last, end)
