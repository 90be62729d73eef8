# SPDX-License-Identifier: Apache-2.0
"""Sameness, on invented objects: the truth is known, comparisons are counted, orders are hidden."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from torpor.model.identity import UNORDERED, Comparisons, Kin, Sorter, assign, group

OBJECTS = st.lists(st.integers(0, 8), max_size=60)


def by_order(a: tuple[int, int], b: tuple[int, int]) -> int:
    """Things are (which, object); their order is that of some hidden addresses."""
    hidden = random.Random(a[1]).random(), random.Random(b[1]).random()
    return 0 if a[1] == b[1] else -1 if hidden[0] < hidden[1] else 1


def without_order(a: tuple[int, int], b: tuple[int, int]) -> int:
    return 0 if a[1] == b[1] else UNORDERED


def truth(things: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    classes: dict[int, list[tuple[int, int]]] = {}
    for thing in things:
        classes.setdefault(thing[1], []).append(thing)
    return list(classes.values())


@given(OBJECTS, st.randoms(use_true_random=False))
def test_classes_are_the_truth(objects: list[int], rng: random.Random) -> None:
    things = list(enumerate(objects))
    assert group(things, by_order) == truth(things)
    assert group(things, without_order) == truth(things)
    assert group(things, by_order, key=lambda thing: thing[1] % 3) == truth(things)
    sorter = Sorter(by_order)
    for thing in things:
        index = sorter.add(thing, thing[1] % 2, hint=rng.randrange(3))  # hints may be wrong
        assert thing in sorter.classes[index]
    assert sorter.classes == truth(things)


def test_comparisons_are_few() -> None:
    count = 2000
    things = [(i, i) for i in range(count)]
    sorter = Sorter(by_order)
    for thing in things:
        sorter.add(thing)
    assert sorter.comparisons <= count * math.ceil(math.log2(count))
    before = sorter.comparisons
    for thing in things:  # the same once more, as a child that inherited everything has it
        sorter.hint(None, thing[0], thing[1])
    for thing in things:
        sorter.add((thing[0] + count, thing[1]), hint=thing[0])
    assert sorter.comparisons == before + count
    different = Sorter(by_order)
    for thing in things:
        different.add(thing, key=thing[0])
    assert different.comparisons == 0


@given(st.lists(st.tuples(st.booleans(), *[st.integers(0, 3)] * 4, st.integers(0, 20)), max_size=20), st.booleans())
def test_assign(shares: list[tuple[bool, int, int, int, int, int]], keyed: bool) -> None:
    owns = {100 + i: share[1:5] for i, share in enumerate(shares)}

    def compare(kind: int):  # type: ignore[no-untyped-def]
        return lambda a, b: (owns[a][kind] > owns[b][kind]) - (owns[a][kind] < owns[b][kind])

    tasks = [
        Kin(100 + i, 100 + relative, alive, tuple(n // 2 for n in owns[100 + i]) if keyed else (None,) * 4)  # type: ignore[arg-type]
        for i, (alive, *_, relative) in enumerate(shares)
    ]
    ids = assign(tasks, Comparisons(*map(compare, range(4))))
    assert list(ids) == list(owns)
    for a in tasks:
        for b in tasks:
            for kind in range(4):
                same = ids[a.tid][kind] == ids[b.tid][kind]
                if a.alive and b.alive:
                    assert same == (owns[a.tid][kind] == owns[b.tid][kind])
                    assert ids[a.tid][kind] > 0
                elif not a.alive:
                    assert ids[a.tid] == (0, 0, 0, 0)
    for kind in range(4):
        numbers = [ids[task.tid][kind] for task in tasks if task.alive]
        assert sorted(set(numbers)) == list(range(1, len(set(numbers)) + 1))
