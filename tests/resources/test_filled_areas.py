# SPDX-License-Identifier: Apache-2.0
"""Nothing is executable while its pages come: where the instruction cache does not follow what is written (ARM), stale
instructions might run.  What the calls would be, without a task."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.engine.program import Pointer, Program
from torpor.images.pages import PAGE_SIZE
from torpor.images.schema.vma import VmaEntry
from torpor.memory import areas as vma
from torpor.memory.cow import Run
from torpor.memory.layout import Inherited
from torpor.memory.restore import AddressSpaces

AT = 0x10000000
R, W, X = 1, 2, 4
FILE, ANONYMOUS = vma.FILE_PRIVATE, vma.ANON_PRIVATE
ALL = [(FILE, R | W | X), (FILE, R | W), (FILE, R), (ANONYMOUS, R | W | X), (ANONYMOUS, R | X)]


def area(status: int, prot: int) -> VmaEntry:
    flags = vma.MAP_PRIVATE | (vma.MAP_ANONYMOUS if status == ANONYMOUS else 0)
    return VmaEntry(
        start=AT, end=AT + PAGE_SIZE, pgoff=0, shmid=int(status == FILE), prot=prot, flags=flags,
        status=vma.REGULAR | status, fd=-1,
    )  # fmt: skip


def spaces(space: Any) -> AddressSpaces:
    made = AddressSpaces.__new__(AddressSpaces)
    made.spaces = {7: space}
    made._open = lambda id, writing=False: 0  # type: ignore[method-assign]
    return made


def space_with(entry: VmaEntry, filled: bool) -> Any:
    return SimpleNamespace(protection={}, with_pages={entry.start} if filled else set(), accounted=set())


def protections(program: Program, name: str) -> list[int]:
    return [call.args[2] for call in program.calls if call.name == name]  # type: ignore[misc]


@pytest.mark.parametrize("status,prot", ALL)
@pytest.mark.parametrize("filled", [True, False])
def test_a_mapping(status: int, prot: int, filled: bool) -> None:
    entry, program = area(status, prot), Program()
    space = space_with(entry, filled)
    runner = SimpleNamespace(send_fds=lambda program, fds: Pointer(bytes(4 * len(fds))))
    task: Any = SimpleNamespace(pid=7, executor=runner)
    spaces(space)._map(program, task, [entry])
    (now,) = protections(program, "mmap")
    assert now == space.protection[AT]
    assert now & (W | X) == W if filled else now == prot


@pytest.mark.parametrize("status,prot", ALL)
@pytest.mark.parametrize("parents", [True, False])
def test_what_a_child_inherits(status: int, prot: int, parents: bool) -> None:
    """The parent has stored pages there, and it was made ready for them; or it has none, and it is as it shall be."""
    entry, program = area(status, prot), Program()
    pages = os.memfd_create("pages")
    try:
        os.ftruncate(pages, PAGE_SIZE)
        level: Any = SimpleNamespace(open_pages=lambda: os.dup(pages))
        own = space_with(entry, True)
        own.runs = lambda: [Run(AT, PAGE_SIZE, level, 0)]
        own.protection[AT] = prot & ~X | W if parents else prot
        parent: Any = SimpleNamespace(runs=list)
        wanted, _ = spaces(own)._share(program, own, parent, Inherited([(entry, entry)], [], []))
        assert [(run.start, run.end) for run in wanted] == [(AT, AT + PAGE_SIZE)]
        assert own.protection[AT] & (W | X) == W
        assert protections(program, "mprotect") == ([] if parents or prot == R | W else [own.protection[AT]])
    finally:
        os.close(pages)
