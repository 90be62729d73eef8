# SPDX-License-Identifier: Apache-2.0
"""Signal frames to which no thread's stack pointer leads.

A program may switch away from a stack in the middle of a handler: so green threads are preempted (swapcontext(3) in a
handler of SIGALRM).  Where this kernel would not take the frames of the one before, all memory that came from images is
looked at for them, once, when it is there: it need not come from the disk for that.  It takes a second for 1 GB, so it
is done only where the images leave open that there may be frames like that (`Arch.may_refuse`).

Whatever looks like a frame, with a stack pointer to memory that is there, is made good: one that somebody returns by,
the rest of an old one, or a copy (which is made to be put back).  What cannot be made good stays, with a warning:
nobody can see whether it is in use.
"""

from bisect import bisect_right

from torpor.arch.base import CannotReturn, Frame
from torpor.engine.waiting import check_cancelled
from torpor.memory.layout import Span, merged
from torpor.memory.signal_frames import windows
from torpor.typed import TYPE_CHECKING, Callable, Sequence

if TYPE_CHECKING:
    from torpor.arch.base import Arch, Memory


class FarFrames:
    """Those in one address space, in the `stored` parts of it.  `areas`: where the tree has memory, merged."""

    def __init__(self, arch: "Arch", areas: Sequence[Span], stored: Sequence[Span], memory: "Memory") -> None:
        self._arch, self._areas, self._stored, self._memory = arch, areas, merged(stored), memory

    def mend(self, own: Frame, write: Callable[[int, bytes], None]) -> tuple[int, set[str]]:
        """How many changes were made, and what registers are in frames that could not be made good."""
        import re  # twice as fast as bytes.find, and up to eight times where most bytes are of few values

        changes, lacking = 0, set()
        marked = re.compile(re.escape(self._arch.frame_mark)).search
        for start, end in self._stored:
            for first, last in windows(start, end):
                check_cancelled()
                found = self._memory(first, last - first)
                for frame in self._arch.signal_frames(found, first, self._memory) if marked(found) else ():
                    if not self._is_ours(frame):
                        continue
                    try:
                        writes = list(self._arch.mended_frame(frame, own))
                    except CannotReturn as what:
                        lacking.add(str(what))
                        continue
                    for address, data in writes:
                        write(address, data)
                    changes += len(writes)
        return changes, lacking

    def _is_ours(self, frame: Frame) -> bool:
        """It is no frame of a virtual machine's inside, say."""
        last = (frame.sp - 1) & self._arch.untag_mask
        at = bisect_right(self._areas, (last, 1 << 64)) - 1
        return at >= 0 and last < self._areas[at][1]
