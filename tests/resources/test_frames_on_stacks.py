# SPDX-License-Identifier: Apache-2.0
"""Where signal frames are looked for (`torpor.memory.signal_frames`, `far_frames`): in memory that is no image's."""

import os
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.arch.arm import ARCH
from torpor.arch.base import CannotReturn, Frame, Registers
from torpor.images import pages as images
from torpor.images.pages import PAGE_SIZE
from torpor.memory import signal_frames
from torpor.memory.cow import Run
from torpor.memory.far_frames import FarFrames
from torpor.memory.signal_frames import Stacks
from torpor.memory.stored import Stored

REGSPACE, SP, PC = 128 + 232, 13, 15
VFP = struct.pack("<2I", 0x56465001, 288)
DUMMY = struct.pack("<2I", 0xB0D9ED01, 160).ljust(160, b"\xee")


def frame(sp: int, dummy: bool) -> bytes:
    """What a kernel writes for a thread whose stack pointer is `sp`; with CONFIG_IWMMXT, or without."""
    general = struct.pack("<18I", *(sp if i == SP else i for i in range(18)))
    written, _ = ARCH.signal_frame(Registers(general, {0x400: bytes(range(256)) + bytes(24)}), 0, 0)
    if not dummy:
        return written
    return written[:REGSPACE] + DUMMY + written[REGSPACE : REGSPACE + 292]


class Memory:
    """One area, all of which is stored, page by page."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.bytes, self.reads, self.most = start, bytearray(size), 0, 0

    def read(self, address: int, length: int) -> bytes:
        self.reads, self.most = self.reads + length, max(self.most, length)
        return bytes(self.bytes[address - self.start : address - self.start + length])

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address - self.start : address - self.start + len(data)] = data

    def stacks(self, *areas: tuple[int, int]) -> Stacks:
        end = self.start + len(self.bytes)
        pages = [(page, page + PAGE_SIZE) for page in range(self.start, end, PAGE_SIZE)]
        return Stacks(ARCH, areas or [(self.start, end)], pages, self.read)


@pytest.mark.parametrize("dummy", [False, True])
def test_a_frame_is_found(dummy: bool) -> None:
    memory = Memory(0x10000, PAGE_SIZE)
    memory.write(0x10200, frame(0x10F00, dummy))
    (found,) = memory.stacks().frames(0x10100)
    assert (found.at, found.pc, found.sp) == (0x10200 + REGSPACE, PC, 0x10F00)


@pytest.mark.parametrize("window", [PAGE_SIZE, 2 * PAGE_SIZE, 1 << 20])
def test_frames_anywhere(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across the ends of pages, which are stored apart, and of what is looked at together."""
    monkeypatch.setattr(signal_frames, "WINDOW", window)
    size = 64 * PAGE_SIZE
    for shift in range(0, PAGE_SIZE, 376):
        memory = Memory(0x10000, size)
        places = range(0x10000 + shift, 0x10000 + size - PAGE_SIZE, 3 * PAGE_SIZE)
        for place in places:
            memory.write(place, frame(0, True))
        found = memory.stacks().frames(0x10000)
        assert sorted(one.at for one in found) == [place + REGSPACE for place in places]
        assert memory.most <= window + signal_frames.FRAME


def test_only_what_is_in_use_is_looked_at_and_only_once() -> None:
    """From the stack pointer up; below it, and in other areas, it may be anything."""
    size = 4 * PAGE_SIZE
    memory = Memory(0x10000, size)
    half = 0x10000 + size // 2
    memory.write(0x10200, frame(0, True))
    memory.write(half + 0x200, frame(0, True))
    stacks = memory.stacks((0x10000, half), (half, 0x10000 + size))
    for pointer in (0x10000 + PAGE_SIZE, 0x10000 + PAGE_SIZE + 8, 0, 0x9000, 0x10000 + size):
        assert stacks.frames(pointer) == []
    assert memory.reads == PAGE_SIZE


def test_a_handler_that_has_interrupted_another_leads_to_its_stack() -> None:
    """The second is on an alternate stack; the first, on the usual one, is found by the second's stack pointer."""
    memory = Memory(0x10000, 4 * PAGE_SIZE)
    half = 0x10000 + 2 * PAGE_SIZE
    memory.write(half + 0x200, frame(half + 0xF00, True))
    memory.write(0x10200, frame(half + 0x100, True))
    stacks = memory.stacks((0x10000, half), (half, half + 2 * PAGE_SIZE))
    assert len(stacks.frames(0x10100)) == 2


def test_an_alternate_stack_ends() -> None:
    """What lies above it in the same area is no stack, and may hold what is left of a frame."""
    memory = Memory(0x10000, 4 * PAGE_SIZE)
    memory.write(0x10200, frame(0, False))
    memory.write(0x11200, frame(0, False))
    found = memory.stacks().frames(0x10100, (0x10000, 0x11000))
    assert [one.at for one in found] == [0x10200 + REGSPACE]


class Level:
    """A pages image."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def open_pages(self) -> int:
        return os.dup(self.fd)


def test_memory_that_images_do_not_hold_is_zero() -> None:
    pages = os.memfd_create("pages")
    try:
        os.pwrite(pages, bytes(PAGE_SIZE * [1]) + bytes(PAGE_SIZE * [2]), 0)
        level: Any = Level(pages)
        runs = [Run(0x10000, PAGE_SIZE, level, PAGE_SIZE), Run(0x10000 + 2 * PAGE_SIZE, PAGE_SIZE, level, 0)]
        space: Any = SimpleNamespace(private=[], runs=lambda: runs)
        stored = Stored(space)
        assert stored.spans() == [(run.start, run.end) for run in runs]
        read = stored.read(0x10000 - 4, 3 * PAGE_SIZE + 8)
        stored.close()
        assert read == b"".join(n * bytes([value]) for n, value in (
            (4, 0), (PAGE_SIZE, 2), (PAGE_SIZE, 0), (PAGE_SIZE, 1), (4, 0)
        ))  # fmt: skip
    finally:
        os.close(pages)


def test_what_a_task_sees_of_a_segment() -> None:
    """It maps the middle of it; the rest of the pages are not there."""
    pages = os.memfd_create("pages")
    try:
        os.pwrite(pages, b"".join(bytes(PAGE_SIZE * [value]) for value in range(1, 7)), 0)
        level: Any = Level(pages)
        area = SimpleNamespace(start=0x50000, end=0x50000 + 3 * PAGE_SIZE, pgoff=2 * PAGE_SIZE)
        pieces = [(images.Run(0, 4, images.PE_PRESENT, 0), level), (images.Run(6 * PAGE_SIZE, 2, 0, 0), level)]
        mapped: Any = SimpleNamespace(mapped=lambda space: [(area, SimpleNamespace(pieces=pieces))])
        own = Run(0x90000, PAGE_SIZE, level, 5 * PAGE_SIZE)
        private = SimpleNamespace(start=own.start, end=own.end)
        space: Any = SimpleNamespace(private=[private], runs=lambda: [own])
        stored = Stored(space, mapped)
        assert stored.areas == [(area.start, area.end), (own.start, own.end)]
        assert stored.spans() == [(area.start, area.start + 2 * PAGE_SIZE), (own.start, own.end)]
        read = stored.read(area.start, 3 * PAGE_SIZE) + stored.read(own.start, 1)
        stored.close()
        assert read == b"".join(bytes(PAGE_SIZE * [value]) for value in (3, 4, 0)) + b"\6"
    finally:
        os.close(pages)


def own_frame() -> Frame:
    memory = Memory(0x10000, PAGE_SIZE)
    memory.write(0x10200, frame(0, False))
    return next(ARCH.signal_frames(bytes(memory.bytes), memory.start, memory.read))


@pytest.mark.parametrize("window", [PAGE_SIZE, 1 << 20])
def test_frames_to_which_nothing_leads(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made good wherever they are, across the ends of pages too, if they are of threads of this memory."""
    monkeypatch.setattr(signal_frames, "WINDOW", window)
    memory = Memory(0x10000, 64 * PAGE_SIZE)
    span = (memory.start, memory.start + len(memory.bytes))
    places = range(0x10000 + PAGE_SIZE - 376, span[1] - PAGE_SIZE, 3 * PAGE_SIZE)
    for place in places:
        memory.write(place, frame(place + 8, True))
    memory.write(0x10000, guest := frame(span[1] + 1, True))  # of somebody's inside of a virtual machine
    pages = [(page, page + PAGE_SIZE) for page in range(*span, PAGE_SIZE)]
    far = FarFrames(ARCH, [span], pages, memory.read)
    assert far.mend(own_frame(), memory.write) == (len(places), set())
    assert memory.read(0x10000, len(guest)) == guest
    for place in places:
        assert memory.read(place, REGSPACE + 292) == frame(place + 8, False)[: REGSPACE + 292]
    assert far.mend(own_frame(), memory.write) == (0, set())


def test_what_cannot_be_made_good_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(0x10000, PAGE_SIZE)
    memory.write(0x10200, frame(0x10800, True))

    def mended_frame(*_: object) -> None:
        raise CannotReturn("AVX")

    monkeypatch.setattr(type(ARCH), "mended_frame", mended_frame)
    span = (0x10000, 0x10000 + PAGE_SIZE)
    assert FarFrames(ARCH, [span], [span], memory.read).mend(own_frame(), memory.write) == (0, {"AVX"})


def test_a_segment_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first of those that have it at the same place; what they do not share, in each."""
    level: Any = Level(-1)
    shared, other = Run(0x50000, PAGE_SIZE, level, 0), Run(0x60000, PAGE_SIZE, level, 0)
    privates = {pid: Run(0x90000, PAGE_SIZE, level, pid * PAGE_SIZE) for pid in (1, 2, 3)}
    runs = {1: [shared, privates[1]], 2: [shared, privates[2]], 3: [other, privates[3]]}

    class Memory:
        def __init__(self, pid: int, _: object) -> None:
            self.runs, self.areas, self.read = runs[pid], [(run.start, run.end) for run in runs[pid]], None

        def spans(self) -> list[tuple[int, int]]:
            return self.areas

        def close(self) -> None:
            pass

    monkeypatch.setattr(signal_frames, "Stored", Memory)
    monkeypatch.setattr(signal_frames, "_threads", lambda *_: {1: [], 2: [], 3: []})
    monkeypatch.setattr(signal_frames.SignalFrames, "_refusing", lambda *_: own_frame())
    spaces: Any = {1: 1, 2: 2, 3: 3}
    restore: Any = None
    looked = {pid: spans for pid, (_, spans) in signal_frames.SignalFrames(restore, {}, spaces)._elsewhere.items()}
    starts = {pid: [start for start, _ in spans] for pid, spans in looked.items()}
    assert starts == {1: [0x50000, 0x90000], 2: [0x90000], 3: [0x60000, 0x90000]}
