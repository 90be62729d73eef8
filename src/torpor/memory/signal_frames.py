# SPDX-License-Identifier: Apache-2.0
"""Signal frames on the stacks of threads in images.

A thread that was dumped inside a signal handler returns from it by a frame that the old kernel has written.  Where this
kernel or CPU would not take that, it is written over before the thread runs; what cannot be made good is refused before
anything is created.

Frames are looked for from a thread's stack pointer up, and from the stack pointers up that the frames hold: a handler
may have interrupted another.  On an alternate stack that is not in use there may be one nevertheless, if the program
has switched away from it, or what is left of an old one: such a frame is made good where it can be, and never refused.
"""

from bisect import bisect_right

from torpor import log
from torpor.arch import native
from torpor.arch.base import CannotReturn, Frame
from torpor.kernel.proc import INFINITY
from torpor.memory.layout import Span, merged
from torpor.memory.stored import Segments, Stored
from torpor.typed import TYPE_CHECKING, Iterator, NamedTuple, Sequence

if TYPE_CHECKING:
    from torpor.arch.base import Arch, Memory, Registers
    from torpor.images.pages import PagemapReader
    from torpor.memory.space import AddressSpace
    from torpor.resources.context import Restore, RestoreTask

WINDOW = 1 << 20  # bytes that are looked at together: what a mangled image calls a stack may be all memory
FRAME = 1 << 10  # a frame is recognised by fewer
NO_STACK: Span = (0, 0)


def windows(start: int, end: int) -> Iterator[Span]:
    """What to look at, one after the other; each has the end of the one before, where a frame may begin."""
    for at in range(start, end, WINDOW):
        yield max(start, at - FRAME), min(end, at + WINDOW)


class Stacks:
    """Those in one address space: its `areas`, which parts of them are `stored`, and how they are read."""

    def __init__(self, arch: "Arch", areas: Sequence[Span], stored: Sequence[Span], memory: "Memory") -> None:
        self._arch, self._areas, self._memory = arch, areas, memory
        self._stored = merged(stored)  # neighbours stand apart where a parent checkpoint has one of them
        self._seen: dict[int, int] = {}  # of an area, by its start: from where up it has been looked at
        self._known: set[int] = set()

    def frames(self, pointer: int, alternate: Span = NO_STACK) -> list[Frame]:
        """New ones on the stacks that lead on from this one; one alternate stack may be among them."""
        found: list[Frame] = []
        pointers = [pointer]
        while pointers:
            for start, end in self._unseen(pointers.pop(), alternate):
                for window in windows(start, end):
                    for frame in self._look(*window):
                        found.append(frame)
                        pointers.append(frame.sp)
        return found

    def _look(self, start: int, end: int) -> Iterator[Frame]:
        for frame in self._arch.signal_frames(self._memory(start, end - start), start, self._memory):
            if frame.at not in self._known:
                self._known.add(frame.at)
                yield frame

    def _unseen(self, pointer: int, alternate: Span) -> Iterator[Span]:
        """The stored memory from there up that was not looked at."""
        at = bisect_right(self._areas, (pointer, INFINITY)) - 1
        if at < 0 or pointer >= self._areas[at][1]:
            return
        area, end = self._areas[at]
        if alternate[0] <= pointer < alternate[1]:
            end = min(end, alternate[1])
        else:
            end = self._seen.get(area, end)
            self._seen[area] = min(pointer, end)
        for run in range(max(0, bisect_right(self._stored, (pointer, INFINITY)) - 1), len(self._stored)):
            first, last = self._stored[run]
            if first >= end:
                return
            if max(first, pointer) < min(last, end):
                yield max(first, pointer), min(last, end)


class _Thread(NamedTuple):
    task: "RestoreTask"
    tid: int
    registers: "Registers"
    sp: int
    alternate: Span

    @property
    def is_on_alternate(self) -> bool:
        return self.alternate[0] <= self.sp < self.alternate[1]


class SignalFrames:
    """Those of a tree.  `of`: by thread, what it returns by."""

    def __init__(
        self, restore: "Restore", registers: "dict[int, Registers]", spaces: "dict[int, AddressSpace]"
    ) -> None:
        self.of: dict[int, list[Frame]] = {}
        self._writes: dict[int, list[tuple[int, bytes]]] = {}  # by a PID with that memory
        self._own: dict[tuple[tuple[int, bytes], ...], Frame | None] = {}
        self._restore = restore
        self._elsewhere: dict[int, tuple[Frame, list[Span]]] = {}  # where FarFrames may be, by PID
        self._areas: set[Span] = set()
        seen: set[tuple[PagemapReader, int, int]] = set()  # a segment is looked at once, wherever it is the same
        segments = Segments(restore)
        try:
            for pid, threads in _threads(restore, registers, spaces).items():
                memory = Stored(spaces[pid], segments)
                try:
                    self._examine(restore, pid, threads, Stacks(native(), memory.areas, memory.spans(), memory.read))
                    if (own := self._refusing(threads)) is not None:
                        new = {(run.level, run.offset, run.start): (run.start, run.end) for run in memory.runs}
                        self._elsewhere[pid] = own, [span for key, span in new.items() if key not in seen]
                        self._areas.update(memory.areas)
                        seen.update(new)
                finally:
                    memory.close()
        finally:
            segments.close()

    def _examine(self, restore: "Restore", pid: int, threads: list[_Thread], stacks: Stacks) -> None:
        for thread in threads:
            self.of[thread.tid] = stacks.frames(thread.sp, thread.alternate)
            for frame in self.of[thread.tid]:
                try:
                    self._mend(pid, frame, thread.registers)
                except CannotReturn as what:
                    why = f"its thread {thread.tid} is in a signal handler, which has interrupted what uses {what}, "
                    why += "and this CPU or its kernel has none"
                    restore.problem(thread.task.refusal(why, "restore it on a CPU that has it", code="cpu-feature"))
        for thread in threads:
            for frame in [] if thread.is_on_alternate else stacks.frames(thread.alternate[0], thread.alternate):
                try:
                    self._mend(pid, frame, thread.registers)
                except CannotReturn:
                    pass

    def _mend(self, pid: int, frame: Frame, registers: "Registers") -> None:
        """Raises CannotReturn."""
        if (own := self._own_frame(registers)) is not None:
            self._writes.setdefault(pid, []).extend(native().mended_frame(frame, own))

    def _own_frame(self, registers: "Registers") -> Frame | None:
        """As this kernel makes it for a thread with these registers."""
        from torpor.engine import own_frame

        lengths = tuple(native().vector_lengths(registers).items())
        if lengths not in self._own:
            self._own[lengths] = own_frame.make(dict(lengths))
            if self._own[lengths] is None:
                log.warning("this kernel's signal frames are not known to Torpor: those in images stay as they are")
        return self._own[lengths]

    def _refusing(self, threads: list[_Thread]) -> Frame | None:
        """This kernel's own, if it may refuse some of what is in memory that these threads share."""
        from torpor.resources import extras

        arch = native()
        if not arch.frame_mark:
            return None
        for task, tid, registers, _, _ in threads:
            own = self._own_frame(registers)
            extra = extras.load(self._restore, task.pid).threads.get(tid)
            stored = {entry.type: entry.data for entry in extra.registers} if extra is not None else {}
            if own is not None and arch.may_refuse(own, task.cores[tid], stored):
                return own
        return None

    def mend(self) -> None:
        """Now that all memory is there."""
        mended = sum(map(len, self._writes.values()))
        for pid, writes in self._writes.items():
            tracee = self._restore.tasks[pid].tracee
            assert tracee is not None
            for address, data in writes:
                tracee.write(address, data)
        areas = merged(self._areas)
        for pid, (own, stored) in self._elsewhere.items():
            from torpor.memory.far_frames import FarFrames

            task = self._restore.tasks[pid]
            assert task.tracee is not None
            changes, lacking = FarFrames(native(), areas, stored, task.tracee.read).mend(own, task.tracee.write)
            size = sum(end - start for start, end in stored)
            log.info(f"{task.subject}: looked for signal frames in {size >> 10} KiB of memory, {changes} changes")
            mended += changes
            if lacking:
                log.warning(
                    f"{task.subject}: a signal frame in its memory, to which no stack pointer leads, holds what this "
                    f"CPU lacks ({', '.join(sorted(lacking))}): if it is in use, the thread that returns by it will end"
                )
        if mended:
            log.info(f"signal frames are as this kernel takes them now, after {mended} changes")


def _threads(
    restore: "Restore", registers: "dict[int, Registers]", spaces: "dict[int, AddressSpace]"
) -> dict[int, list[_Thread]]:
    """By a PID with their memory, from the highest stack pointer down: what lies between two of one area is the lower
    one's."""
    owners = {task.ids.vm_id: pid for pid in spaces if (task := restore.tasks[pid]).ids is not None}
    found: dict[int, list[_Thread]] = {}
    for task in restore.tasks.values():
        if task.dead or task.ids is None or task.ids.vm_id not in owners:
            continue
        for tid, core in task.cores.items():
            if tid in registers:
                own = core.thread_core
                sas = own.sas if own is not None else None
                alternate = (sas.ss_sp, sas.ss_sp + sas.ss_size) if sas is not None else NO_STACK
                thread = _Thread(task, tid, registers[tid], native().sp(registers[tid].general), alternate)
                found.setdefault(owners[task.ids.vm_id], []).append(thread)
    for threads in found.values():
        threads.sort(key=lambda thread: -thread.sp)
    return found
