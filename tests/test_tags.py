# SPDX-License-Identifier: Apache-2.0
"""Memory tags of aarch64 in images, without a machine that has them: stored, read, checked, compared with a parent's.

That they come back into a task is shown by the workload cpu_mte, in guests.
"""

import os
import random
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.arch import native
from torpor.arch.base import Registers
from torpor.errors import ImageError, Refusal
from torpor.images import kinds
from torpor.images.directory import ImageReader, ImageWriter
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.schema.core import CoreEntry
from torpor.images.schema.torpor import TagRunEntry
from torpor.memory import areas as vma
from torpor.memory import tags
from torpor.memory.cow import Run
from torpor.memory.layout import PROT_MTE
from torpor.resources.context import RestoreTask

PID, START = 100, 0x100000
SHARED = START + 100 * PAGE
KEPT = START + 1000 * PAGE  # from here on, pages count whose tags are all 0
MODE = 0x409  # NT_ARM_TAGGED_ADDR_CTRL


def page(tag: int) -> bytes:
    """A page's tags, all alike, as ptrace has them."""
    return bytes([tag]) * tags.PER_PAGE


def area(start: int, pages: int, flags: int = vma.MAP_PRIVATE, prot: int = 3) -> Any:
    return SimpleNamespace(start=start, end=start + pages * PAGE, prot=prot, flags=flags, status=0)


class Checkpoint:
    """One task's tags in a directory."""

    def __init__(self, path: Path, found: dict[int, bytes], areas: list[Any], stored: list[int] | None = None) -> None:
        path.mkdir()
        self.fd = os.open(path, os.O_RDONLY)
        some = [(start, one, start >= KEPT) for start, one in found.items()]
        dumped: Any = SimpleNamespace(tags=some, task=SimpleNamespace(pid=PID))
        self.entries = tags.save(ImageWriter(self.fd), dumped)
        self.path = path / kinds.TORPOR_TAGS.file_name(PID)
        self.areas = areas
        self.extras: Any = SimpleNamespace(tagged=[one.start for one in areas], tags=self.entries)
        self.task = RestoreTask(PID, 1, PID, PID, [PID])
        self.task.cores[PID] = CoreEntry(mtype=1)
        pages = sorted({*found, *(stored or ())})
        self.runs = lambda: [Run(at, PAGE, None, 0) for at in pages]  # type: ignore[arg-type]

    def load(self) -> "Checkpoint":
        space: Any = self
        self.tags = tags.Tags(ImageReader(self.fd), space)
        return self


@pytest.fixture(autouse=True)
def tagging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with tags."""
    monkeypatch.setattr(type(native()), "tags_memory", lambda _: True)
    yield


def test_two_tags_in_a_byte_the_first_below() -> None:
    some = bytes(random.Random(1).choices(range(16), k=4096))
    assert tags.pack(b"\1\2\x0f\0") == b"\x21\x0f"
    assert tags.unpack(tags.pack(some)) == some and len(tags.pack(some)) == 2048


def test_only_pages_with_tags_are_stored(tmp_path: Path) -> None:
    many = page(0) + page(1) + page(2) + page(0) + page(3)
    made = Checkpoint(tmp_path / "a", {START: many, START + 5 * PAGE: page(4)}, [area(START, 10)])
    assert made.entries == [TagRunEntry(start=START + PAGE, pages=2), TagRunEntry(start=START + 4 * PAGE, pages=2)]
    assert made.path.stat().st_size == 4 * tags.STORED
    made.load()
    assert made.areas[0].prot == 3 | PROT_MTE
    assert list(tags.private(made)) == [  # type: ignore[arg-type]
        (START + PAGE, b"\x11" * tags.STORED + b"\x22" * tags.STORED),
        (START + 4 * PAGE, b"\x33" * tags.STORED + b"\x44" * tags.STORED),
    ]


def test_zeros_are_stored_where_something_else_may_be(tmp_path: Path) -> None:
    made = Checkpoint(tmp_path / "a", {KEPT: page(1) + page(0)}, [area(KEPT, 3)])
    assert made.entries == [TagRunEntry(start=KEPT, pages=2)]


def test_long_runs_are_read_in_pieces(tmp_path: Path) -> None:
    number = 3 * tags.AT_ONCE // tags.PER_PAGE + 1
    some = bytes(random.Random(2).choices(range(1, 16), k=number * tags.PER_PAGE))
    made = Checkpoint(tmp_path / "a", {START: some}, [area(START, number)]).load()
    pieces = list(made.tags.read(made.areas))
    assert len(pieces) == 4
    assert b"".join(tags.unpack(piece) for _, piece in pieces) == some
    assert [start for start, _ in pieces] == [START + i * (1 << 20) for i in range(4)]


def test_shared_memory_is_told_from_private(tmp_path: Path) -> None:
    areas = [area(START, 4), area(SHARED, 4, vma.MAP_SHARED), area(SHARED + 4 * PAGE, 4, vma.MAP_SHARED)]
    made: Any = Checkpoint(tmp_path / "a", {START: page(1), SHARED: page(2)}, areas).load()
    assert list(tags.private(made)) == [(START, b"\x11" * tags.STORED)]
    which, found = tags.shared(made)
    assert which == areas[1:2] and list(found) == [(SHARED, b"\x22" * tags.STORED)]


def test_what_differs_from_a_parent(tmp_path: Path) -> None:
    """Same tags, others, none any more, new ones, a page that the child does not have, one in an area of its own."""

    def at(number: int) -> int:
        return START + number * PAGE

    parent: Any = Checkpoint(
        tmp_path / "a", {at(0): page(1), at(1): page(2), at(2): page(3), at(4): page(4), SHARED: page(5)},
        [area(START, 8), area(SHARED, 1), area(KEPT, 2)],
    ).load()  # fmt: skip
    child: Any = Checkpoint(
        tmp_path / "b", {at(0): page(1), at(1): page(9), at(3): page(8), SHARED: page(5), KEPT: page(0)},
        [area(START, 8), area(SHARED, 1), area(KEPT, 2)],
        stored=[at(2)],
    ).load()  # fmt: skip
    found = dict(tags.differences(child, parent, child.areas[:1]))
    assert found == {
        at(1): b"\x99" * tags.STORED, at(2): bytes(tags.STORED), at(3): b"\x88" * tags.STORED,
        SHARED: b"\x55" * tags.STORED, KEPT: bytes(tags.STORED),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        pytest.param([(START + 1, 1)], 1, id="no whole page"),
        pytest.param([(START, 0)], 0, id="no page"),
        pytest.param([(START, 2), (START + PAGE, 1)], 3, id="twice"),
        pytest.param([(START + PAGE, 1), (START, 1)], 2, id="out of order"),
        pytest.param([(START, 11)], 11, id="beyond the area"),
        pytest.param([(START - PAGE, 1)], 1, id="before the area"),
        pytest.param([(START, 1 << 60)], 1, id="huge"),
        pytest.param([(START, 2)], 1, id="image too short"),
        pytest.param([(START, 1)], 2, id="image too long"),
    ],
)
def test_mangled_tags_are_noticed(tmp_path: Path, entries: list[tuple[int, int]], size: int) -> None:
    made = Checkpoint(tmp_path / "a", {START: page(1)}, [area(START, 10)])
    made.extras.tags = [TagRunEntry(start=start, pages=pages) for start, pages in entries]
    made.path.write_bytes(bytes(size * tags.STORED))
    with pytest.raises(ImageError, match=r"torpor-tags-100\.img is mangled"):
        made.load()


def test_without_the_image_there_is_no_restore(tmp_path: Path) -> None:
    made = Checkpoint(tmp_path / "a", {START: page(1)}, [area(START, 10)])
    made.path.unlink()
    with pytest.raises(ImageError, match=r"torpor-tags-100\.img is missing"):
        made.load()


def test_a_machine_without_tags_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Checkpoint(tmp_path / "a", {}, [area(START, 10)])
    monkeypatch.setattr(type(native()), "tags_memory", lambda _: False)
    with pytest.raises(Refusal, match="its memory is tagged") as refused:
        made.load()
    assert refused.value.code == "cpu-feature"


@pytest.mark.parametrize(("mode", "refused"), [(0, False), (1, False), (3, True), (0x7FFF1, True)])
def test_a_thread_that_checks_tags_needs_a_machine_with_them(
    mode: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = import_module("torpor.arch.aarch64").ARCH
    monkeypatch.setattr(type(arch), "tags_memory", lambda _: False)
    registers = Registers(bytes(272), {0x401: bytes(16), MODE: bytes(8)})
    stored = {MODE: struct.pack("<Q", mode)}
    if refused:
        with pytest.raises(Refusal, match="it uses memory tags"):
            arch.with_extras(registers, stored, registers)
    else:
        arch.with_extras(registers, stored, registers)


def test_who_checks_tags() -> None:
    arch = import_module("torpor.arch.aarch64").ARCH
    modes = [arch.checks_tags(Registers(b"", {MODE: struct.pack("<Q", mode)})) for mode in (0, 1, 3, 5, 7, 0x7FFF9)]
    assert modes == [False, False, True, True, True, False] and not arch.checks_tags(Registers(b"", {}))
