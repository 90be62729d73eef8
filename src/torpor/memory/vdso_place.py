# SPDX-License-Identifier: Apache-2.0
"""Putting the kernel's own areas, [vvar] and [vdso], into restored address spaces (see `torpor.memory.vdso`).

The kernel gave them to the first task; all others inherit them.  mremap(2) moves them, whole, and the kernel takes
note: where a vDSO has signal trampolines, it finds them again.  32-bit ARM has these on a page of their own, [sigpage]
(see `torpor.memory.sigpage`).

What a task had unmapped of them is put aside, and unmapped at the end: its children may have it.
"""

import os

from torpor.arch import native
from torpor.engine.executor import Executor
from torpor.engine.program import Program
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.schema.vma import VmaEntry
from torpor.kernel.maps import Area, kind, read_maps
from torpor.memory import areas as vma
from torpor.memory import sigpage
from torpor.memory.kernels_areas import KINDS, NONE, PROT_EXEC, PROT_READ, Kernels, Place
from torpor.memory.layout import Span
from torpor.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from torpor.arch.base import Frame, Registers
    from torpor.memory.space import AddressSpace
    from torpor.resources.context import Restore, RestoreTask

MAP_FIXED = 0x10
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2


class Places:
    """Of all address spaces.  Raises Refusal for what cannot be."""

    def __init__(self, spaces: "dict[int, AddressSpace]", find_hole: Callable[..., int]) -> None:
        """`find_hole`: an address where so many bytes are free in the whole tree, from beginning to end, and outside of
        the spans that follow."""
        self.kernels = Kernels.look()
        self._spaces, self._find_hole = spaces, find_hole
        self._spare = 0
        self._redirected: dict[bytes, bytes] = {}
        self._foreign: dict[int, bytes] = {}  # texts that are not this kernel's, by PID
        self.of = {pid: self._find(space) for pid, space in spaces.items()}

    def _find(self, space: "AddressSpace") -> Place:
        signals, data = self._apart([area for area in space.areas if area.status & vma.VVAR])
        code = _span([area for area in space.areas if area.status & vma.VDSO])
        if code == NONE:
            return self._without_code(space, data)._replace(signals=signals)
        if any(area.status & vma.VDSO and area.prot != PROT_READ | PROT_EXEC for area in space.areas):
            why = f"its vDSO at {code[0]:#x} had a protection of its own, which it would lose"
            raise space.task.refusal(why, "run the program without what changes it", code="vdso-changed")
        text, kernels = _stored(space, code), self.kernels
        if text and text != kernels.text:
            self._foreign[space.task.pid] = text
        same_size = code[1] - code[0] == len(kernels.text) and data[1] - data[0] == kernels.data
        if same_size and (not text or text == kernels.text or self._fits(text)):
            spare = self._find_spare() if self.kernels.signals and signals == NONE else 0
            return Place(data, code, b"", spare, signals)
        return Place(data, code, self._redirect(space, text), self._find_spare(), signals)

    def _apart(self, areas: list[VmaEntry]) -> tuple[Span, Span]:
        """[sigpage], of which alone code is executed, and the vDSO's data: one area in images of older Torpors."""
        signals = _span([area for area in areas if area.prot & PROT_EXEC])
        start, end = _span([area for area in areas if not area.prot & PROT_EXEC])
        size = len(self.kernels.signals)
        if size and signals == NONE and end - start == size + self.kernels.data:
            return (start, start + size), (start + size, end)
        return signals, (start, end)

    def _without_code(self, space: "AddressSpace", data: Span) -> Place:
        """It has unmapped its vDSO, and what that needs perhaps."""
        if data != NONE and data[1] - data[0] != self.kernels.data:
            raise space.task.refusal(
                "the data of its vDSO, without the vDSO, are of another kernel than this one",
                "restore it under the kernel that it was dumped on", code="other-vdso",
            )  # fmt: skip
        return Place(data, NONE, b"", self._find_spare())

    def _find_spare(self) -> int:
        if not self._spare:
            self._spare = self._find_hole(self.kernels.size or PAGE)
        return self._spare

    @property
    def spare(self) -> Span:
        """Where the kernel's areas are in those tasks that have them elsewhere; empty: in none."""
        return (self._spare, self._spare + self.kernels.size) if self._spare else NONE

    def _fits(self, text: bytes) -> bool:
        from torpor.memory import vdso

        try:
            return vdso.fits(vdso.symbols(text), vdso.symbols(self.kernels.text))
        except vdso.NotElf:
            return False

    def _redirect(self, space: "AddressSpace", text: bytes) -> bytes:
        from torpor.memory import vdso

        if not text:
            raise space.task.refusal(
                "its vDSO is of another kernel than this one, and the images do not hold it",
                "restore it under the kernel that it was dumped on", code="other-vdso",
            )  # fmt: skip
        spare = self._find_spare()
        if text not in self._redirected:
            try:
                base = self.kernels.each(spare)[2][0]
                new = vdso.symbols(self.kernels.text)
                self._redirected[text] = vdso.redirect(text, new, base, native())
            except (vdso.NotElf, vdso.TooShort) as error:
                raise space.task.refusal(
                    f"its vDSO is of another kernel than this one, and cannot be redirected ({error})",
                    "restore it under the kernel that it was dumped on", code="other-vdso",
                ) from None  # fmt: skip
        return self._redirected[text]

    @property
    def is_foreign(self) -> bool:
        """Whether there is any text that is not this kernel's."""
        return bool(self._foreign)

    def check_threads(
        self, restore: "Restore", registers: "dict[int, Registers]", frames: "dict[int, list[Frame]]"
    ) -> None:
        """Refuse threads in the middle of a function that this kernel's vDSO does not have there, or in signal handlers
        that will return to one.  `frames`: by thread, what they return by."""
        if not self._foreign:
            return
        sharing = _sharing(restore)
        for pid in self._foreign:
            for task in sharing(pid):
                for tid in task.cores:
                    if tid in registers and self._is_inside(pid, native().pc(registers[tid].general)):
                        why = f"its thread {tid} was in the middle of a function of its kernel's vDSO"
                    elif any(self._is_inside(pid, frame.pc) for frame in frames.get(tid, ())):
                        why = f"its thread {tid} is in a signal handler, which has interrupted a function of its "
                        why += "kernel's vDSO"
                    else:
                        continue
                    remedy = "restore it under the kernel that it was dumped on"
                    restore.problem(task.refusal(why, remedy, code="inside-vdso"))

    def leave_signal_pages(self, restore: "Restore", frames: "dict[int, list[Frame]]", same_boot: bool) -> None:
        """Decide where the old [sigpage] has to stay.  Refuse threads that need it where the images do not hold it."""
        ours = self.kernels.signals
        if not ours:
            return
        theirs, sharing = sigpage.stored(restore), _sharing(restore)
        for pid, place in self.of.items():
            tasks = sharing(pid)
            inside = [tid for task in tasks for tid in task.cores if sigpage.is_inside(frames.get(tid, ()))]
            if inside and not theirs and not same_boot:
                sigpage.refuse(restore, restore.tasks[pid], inside[0])
            needed = theirs != ours and (bool(inside) or any(map(sigpage.has_handler, tasks)))
            if place.signals != NONE and theirs and (place.text or needed):
                self.of[pid] = place._replace(old_signals=theirs, spare=self._find_spare())

    def _is_inside(self, pid: int, pc: int) -> bool:
        """Whether that is in the old text, but where no function begins."""
        from torpor.memory import vdso

        start, end = self.of[pid].code
        return start <= pc < end and pc - start not in vdso.entries(self._foreign[pid])

    # -- restore ----------------------------------------------------------------------------------------------------
    def place(self, task: "RestoreTask", program: Program, inherited_from: int = 0) -> Program:
        """Put them where they belong, when `program` has run; the program to go on with.  `inherited_from`: the PID
        whose memory this task has got; 0: it is the first."""
        place = self.of.get(task.pid)
        before = self.of.get(inherited_from)
        if place is None or place == before:
            return program
        runner = task.runner
        assert runner is not None and task.tracee is not None
        for (start, end), _, _ in before.left if before is not None else ():
            program.call("munmap", start, end - start)
        now = [area for area in read_maps(task.pid) if kind(area) in KINDS]
        self._move(runner, program, self._moves(now, place))
        if place.left:
            program = Program()
            for (start, end), prot, _ in place.left:
                flags = vma.MAP_PRIVATE | vma.MAP_ANONYMOUS | MAP_FIXED
                program.call("mmap", start, end - start, prot, flags, -1, 0)
            runner.run(program)
            for (start, _), _, content in place.left:
                task.tracee.write(start, content)
        task.tracee.use_gadget(0)
        return Program()

    def drop(self, task: "RestoreTask", program: Program) -> bool:
        """Append that what the task does not have goes, now that all its children are there; whether that is the
        vDSO."""
        place = self.of.get(task.pid)
        if place is None or place.text:
            return False
        own = place.signals, place.data, place.code
        for span, (start, end) in zip(own, self.kernels.each(place.spare), strict=True):
            if span == NONE and place.spare and end > start:
                program.call("munmap", start, end - start)
        return place.code == NONE

    def _moves(self, now: list[Area], place: Place) -> list[tuple[int, int, int]]:
        """(from, bytes, to) of each area; [vvar] and [vvar_vclock] are one in images."""
        left = [span for span, _, _ in place.left]
        (signals, _), (data, _), (code, _) = (
            spare if own == NONE or own in left else own
            for own, spare in zip((place.signals, place.data, place.code), self.kernels.each(place.spare), strict=True)
        )
        moves = []
        for area in sorted(now, key=lambda area: area.start):
            if kind(area) == "vdso":
                moves.append((area.start, area.size, code))
            elif kind(area) == "sigpage":
                moves.append((area.start, area.size, signals))
            else:
                moves.append((area.start, area.size, data))
                data += area.size
        return moves

    def _move(self, runner: Executor, program: Program, moves: list[tuple[int, int, int]]) -> None:
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        moves = [move for move in moves if move[0] != move[2]]
        old = [(a, a + n) for a, n, _ in moves]
        if any(start < b + n and b < end for start, end in old for _, n, b in moves):  # by way of a third place
            third = self._find_hole(sum(n for _, n, _ in moves), *old)
            steps = []
            for a, n, b in moves:
                program.call("mremap", a, n, n, flags, third)
                steps.append((third, n, b))
                third += n
            moves = steps
        for a, n, b in moves:
            program.call("munmap", b, n)
            program.call("mremap", a, n, n, flags, b)
        if len(program):
            runner.run(program)


def _sharing(restore: "Restore") -> "Callable[[int], list[RestoreTask]]":
    """The tasks that have the memory of the one with this PID."""
    of: dict[int, list[RestoreTask]] = {}
    for task in restore.tasks.values():
        if task.ids is not None:
            of.setdefault(task.ids.vm_id, []).append(task)

    def sharing(pid: int) -> "list[RestoreTask]":
        owner = restore.tasks[pid].ids
        return of[owner.vm_id] if owner is not None else []

    return sharing


def _span(areas: list[VmaEntry]) -> Span:
    return (areas[0].start, areas[-1].end) if areas else NONE


def _stored(space: "AddressSpace", code: Span) -> bytes:
    """The old vDSO's text, from the images; empty where they do not hold it."""
    text = b""
    for run, level in space.pages.pieces:
        if level is not None and run.vaddr < code[1] and run.vaddr + run.nr_pages * PAGE > code[0]:
            start = max(run.vaddr, code[0])
            end = min(run.vaddr + run.nr_pages * PAGE, code[1])
            if start != code[0] + len(text):
                return b""
            fd = level.open_pages()
            try:
                text += os.pread(fd, end - start, run.offset + start - run.vaddr)
            finally:
                os.close(fd)
    return text if len(text) == code[1] - code[0] else b""
