# SPDX-License-Identifier: Apache-2.0
"""Signal frames of another kernel (`torpor.engine.frames`), in memory that is not a task's."""

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.arch.arm import ARCH
from torpor.arch.base import Registers
from torpor.engine import frames
from torpor.engine.frames import Stacks
from torpor.images.pages import PAGE_SIZE

REGSPACE, SP = 128 + 232, 13
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
    """One area of a thing that is read and written like a tracee."""

    arch = ARCH

    def __init__(self, start: int, size: int) -> None:
        self.start, self.bytes, self.reads, self.most = start, bytearray(size), 0, 0

    def read(self, address: int, length: int) -> bytes:
        self.reads, self.most = self.reads + length, max(self.most, length)
        return bytes(self.bytes[address - self.start : address - self.start + length])

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address - self.start : address - self.start + len(data)] = data

    def stacks(self, *areas: tuple[int, int]) -> Stacks:
        pages = range(self.start, self.start + len(self.bytes), PAGE_SIZE)
        pieces = [(SimpleNamespace(vaddr=page, nr_pages=1), None) for page in pages]
        space: Any = SimpleNamespace(
            private=[SimpleNamespace(start=start, end=end) for start, end in areas],
            pages=SimpleNamespace(pieces=pieces),
        )
        tracee: Any = self
        return Stacks(space, tracee)


def test_a_frame_with_an_empty_block_becomes_one_without() -> None:
    memory = Memory(0x10000, PAGE_SIZE)
    old, new = frame(0x10F00, True), frame(0x10F00, False)
    memory.write(0x10200, old)
    stacks = memory.stacks((0x10000, 0x10000 + PAGE_SIZE))
    stacks.mend([0x10100])
    assert stacks.mended == 1
    assert memory.read(0x10200, REGSPACE + 292) == new[: REGSPACE + 292]


def test_frames_without_it_stay_as_they_are() -> None:
    memory = Memory(0x10000, PAGE_SIZE)
    memory.write(0x10200, frame(0x10F00, False))
    memory.write(0x10A00, DUMMY + b"something else")
    before = bytes(memory.bytes)
    stacks = memory.stacks((0x10000, 0x10000 + PAGE_SIZE))
    stacks.mend([0x10000])
    assert (stacks.mended, bytes(memory.bytes)) == (0, before)


@pytest.mark.parametrize("window", [PAGE_SIZE, 2 * PAGE_SIZE, 1 << 20])
def test_frames_anywhere(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across the ends of pages, which are stored apart, and of what is looked at together."""
    monkeypatch.setattr(frames, "WINDOW", window)
    size = 64 * PAGE_SIZE
    for shift in range(0, PAGE_SIZE, 376):
        memory = Memory(0x10000, size)
        places = range(0x10000 + shift, 0x10000 + size - PAGE_SIZE, 3 * PAGE_SIZE)
        for place in places:
            memory.write(place, frame(0, True))
        stacks = memory.stacks((0x10000, 0x10000 + size))
        stacks.mend([0x10000])
        assert stacks.mended == len(places)
        assert memory.most <= window + frames.FRAME
        for place in places:
            assert memory.read(place, REGSPACE + 292) == frame(0, False)[: REGSPACE + 292]


def test_only_what_is_in_use_is_looked_at_and_only_once() -> None:
    """From the stack pointer up; below it, and in other areas, it may be anything."""
    size = 4 * PAGE_SIZE
    memory = Memory(0x10000, size)
    half = 0x10000 + size // 2
    memory.write(0x10200, frame(0, True))
    memory.write(half + 0x200, frame(0, True))
    stacks = memory.stacks((0x10000, half), (half, 0x10000 + size))
    stacks.mend([0x10000 + PAGE_SIZE])
    assert (stacks.mended, memory.reads) == (0, PAGE_SIZE)
    stacks.mend([0x10000 + PAGE_SIZE, 0x10000 + PAGE_SIZE + 8])
    assert memory.reads == PAGE_SIZE
    stacks.mend([0, 0x9000, 0x10000 + size])
    assert memory.reads == PAGE_SIZE


def test_a_handler_that_has_interrupted_another_leads_to_its_stack() -> None:
    """The second is on an alternate stack; the first, on the usual one, is found by the second's stack pointer."""
    size = 4 * PAGE_SIZE
    memory = Memory(0x10000, size)
    half = 0x10000 + size // 2
    memory.write(half + 0x200, frame(half + 0xF00, True))
    memory.write(0x10200, frame(half + 0x100, True))
    stacks = memory.stacks((0x10000, half), (half, 0x10000 + size))
    stacks.mend([0x10100])
    assert stacks.mended == 2
