# SPDX-License-Identifier: Apache-2.0
"""Putting the kernel's own areas, [vvar] and [vdso], into restored address spaces (see `torpor.memory.vdso`).

The kernel gave them to the first task; all others inherit them.  mremap(2) moves them, whole, and the kernel takes
note: where a vDSO has signal trampolines, it finds them again.

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
from torpor.memory import own_vdso
from torpor.memory.layout import Span
from torpor.typed import TYPE_CHECKING, Callable, NamedTuple

if TYPE_CHECKING:
    from torpor.arch.base import Frame, Registers
    from torpor.memory.space import AddressSpace
    from torpor.resources.context import Restore, RestoreTask

PROT_READ, PROT_EXEC = 1, 4
MAP_FIXED = 0x10
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
KINDS = frozenset({"vvar", "vvar_vclock", "sigpage", "vdso"})
_NONE = (0, 0)


class Kernels(NamedTuple):
    """What this kernel gives every task."""

    data: int  # bytes of [vvar] and [vvar_vclock]
    text: bytes

    @classmethod
    def look(cls) -> "Kernels":
        mine = [area for area in read_maps(os.getpid()) if kind(area) in KINDS]
        return cls(sum(area.size for area in mine if kind(area) != "vdso"), own_vdso.text())


class Place(NamedTuple):
    """Where the kernel's areas go in one address space.  `text` is what is left at the old place, if anything."""

    data: Span  # empty: the task has none
    code: Span
    text: bytes
    spare: int  # where the kernel's areas go if not to the old place; those that the task does not have, until the end

    def is_left(self, address: int) -> bool:
        """Whether what is at `address` is the old text, or the zeros where its data were."""
        return bool(self.text) and any(start <= address < end for start, end in (self.data, self.code))


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
        data = _span([area for area in space.areas if area.status & vma.VVAR])
        code = _span([area for area in space.areas if area.status & vma.VDSO])
        if code == _NONE:
            return self._without_code(space, data)
        if any(area.status & vma.VDSO and area.prot != PROT_READ | PROT_EXEC for area in space.areas):
            why = f"its vDSO at {code[0]:#x} had a protection of its own, which it would lose"
            raise space.task.refusal(why, "run the program without what changes it", code="vdso-changed")
        text, kernels = _stored(space, code), self.kernels
        if text and text != kernels.text:
            self._foreign[space.task.pid] = text
        same_size = code[1] - code[0] == len(kernels.text) and data[1] - data[0] == kernels.data
        if same_size and (not text or text == kernels.text or self._fits(text)):
            return Place(data, code, b"", 0)
        return Place(data, code, self._redirect(space, text), self._find_spare())

    def _without_code(self, space: "AddressSpace", data: Span) -> Place:
        """It has unmapped its vDSO, and what that needs perhaps."""
        if data != _NONE and data[1] - data[0] != self.kernels.data:
            raise space.task.refusal(
                "the data of its vDSO, without the vDSO, are of another kernel than this one",
                "restore it under the kernel that it was dumped on", code="other-vdso",
            )  # fmt: skip
        return Place(data, _NONE, b"", self._find_spare())

    def _find_spare(self) -> int:
        if not self._spare:
            self._spare = self._find_hole(self._kernels_size or PAGE)
        return self._spare

    @property
    def spare(self) -> Span:
        """Where the kernel's areas are in those tasks that have them elsewhere; empty: in none."""
        return (self._spare, self._spare + self._kernels_size) if self._spare else _NONE

    @property
    def _kernels_size(self) -> int:
        return self.kernels.data + len(self.kernels.text)

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
                base = spare + self.kernels.data
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
        sharing: dict[int, list[RestoreTask]] = {}
        for task in restore.tasks.values():
            if task.ids is not None:
                sharing.setdefault(task.ids.vm_id, []).append(task)
        for pid in self._foreign:
            owner = restore.tasks[pid].ids
            for task in sharing[owner.vm_id] if owner is not None else ():
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
        if before is not None and before.text:
            for start, end in (before.data, before.code):
                if end > start:
                    program.call("munmap", start, end - start)
        now = [area for area in read_maps(task.pid) if kind(area) in KINDS]
        self._move(runner, program, _moves(now, place))
        if place.text:
            program = Program()
            for (start, end), prot in ((place.data, PROT_READ), (place.code, PROT_READ | PROT_EXEC)):
                if end > start:
                    flags = vma.MAP_PRIVATE | vma.MAP_ANONYMOUS | MAP_FIXED
                    program.call("mmap", start, end - start, prot, flags, -1, 0)
            runner.run(program)
            task.tracee.write(place.code[0], place.text)
        task.tracee.use_gadget(0)
        return Program()

    def drop(self, task: "RestoreTask", program: Program) -> bool:
        """Append that what the task does not have goes, now that all its children are there; whether there is any."""
        place = self.of.get(task.pid)
        if place is None or place.code != _NONE:
            return False
        start, end = self.spare
        if place.data != _NONE:
            start += self.kernels.data
        if end > start:
            program.call("munmap", start, end - start)
        return True

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


def _moves(now: list[Area], place: Place) -> list[tuple[int, int, int]]:
    """(from, bytes, to) of each area; [vvar] and [vvar_vclock] are one in images."""
    moves = []
    data, code = place.data[0], place.code[0]
    if place.text or place.data == _NONE:
        data = place.spare
    if place.text or place.code == _NONE:
        code = place.spare + sum(area.size for area in now if kind(area) != "vdso")
    for area in sorted(now, key=lambda area: area.start):
        if kind(area) == "vdso":
            moves.append((area.start, area.size, code))
        else:
            moves.append((area.start, area.size, data))
            data += area.size
    return moves


def _span(areas: list[VmaEntry]) -> Span:
    return (areas[0].start, areas[-1].end) if areas else _NONE


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
