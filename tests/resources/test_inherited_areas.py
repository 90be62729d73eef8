# SPDX-License-Identifier: Apache-2.0
"""Which areas a child keeps of its parent, as their accounting goes: without tasks."""

import pytest

from torpor.images.pages import PAGE_SIZE
from torpor.images.schema.vma import VmaEntry
from torpor.memory import areas as vma
from torpor.memory.layout import inherit

AT = 0x10000000
R, W = 1, 2
NONE, PLAIN, RESERVED = 0, 0, vma.MAP_NORESERVE


def area(prot: int, flags: int) -> VmaEntry:
    return VmaEntry(
        start=AT, end=AT + PAGE_SIZE, pgoff=0, shmid=0, prot=prot, flags=vma.MAP_PRIVATE | vma.MAP_ANONYMOUS | flags,
        status=vma.REGULAR | vma.ANON_PRIVATE, fd=-1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "old_was", "new", "new_was", "kept"),
    [
        ((R | W, PLAIN), False, (R | W, PLAIN), False, True),
        ((R | W, PLAIN), False, (NONE, PLAIN), False, False),  # it would stay accounted for
        ((R | W, PLAIN), False, (NONE, PLAIN), True, True),  # made so by mprotect, after the fork
        ((NONE, PLAIN), False, (NONE, PLAIN), False, True),
        ((NONE, PLAIN), False, (R | W, PLAIN), False, True),
        ((NONE, PLAIN), False, (NONE, PLAIN), True, True),
        ((NONE, PLAIN), True, (NONE, PLAIN), True, True),
        ((NONE, PLAIN), True, (NONE, PLAIN), False, False),
        ((R | W, RESERVED), False, (NONE, RESERVED), False, True),  # the heaps of threads
        ((R | W, RESERVED), False, (R | W, PLAIN), False, False),
    ],
)
def test_what_is_kept(
    old: tuple[int, int], old_was: bool, new: tuple[int, int], new_was: bool, kept: bool
) -> None:  # fmt: skip
    accounted = ({AT} if old_was else set(), {AT} if new_was else set())
    plan = inherit([area(*old)], [area(*new)], accounted, {AT})
    assert (len(plan.keep), len(plan.create), len(plan.drop)) == ((1, 0, 0) if kept else (0, 1, 1))


@pytest.mark.parametrize(("prot", "was", "kept"), [(NONE, True, False), (NONE, False, False), (R | W, False, True)])
def test_without_pages(prot: int, was: bool, kept: bool) -> None:
    """What is accounted for, and has no pages, would be so no more after mprotect."""
    plan = inherit([area(R | W, PLAIN)], [area(prot, PLAIN)], (set(), {AT} if was else set()), set())
    assert (len(plan.keep), len(plan.create), len(plan.drop)) == ((1, 0, 0) if kept else (0, 1, 1))
