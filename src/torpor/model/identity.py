# SPDX-License-Identifier: Apache-2.0
"""Same or only equal?  Who shares what, found with few comparisons, and the numbers that images give to it.  Pure.

Two tasks may share an address space, a descriptor table, a root and working directory, signal handlers; two
descriptors may be one open file description.  The only question that the kernel answers is about a pair (kcmp(2)),
but its answer has an order: -1, 0, 1, of hidden addresses.  So equal things are found by searching a sorted list, in
O(n log k) comparisons for n things of which k are different, never n²:

- things with different cheap keys (inode, position, flags; the parent's table) are never compared;
- the thing that is probably the same (the same number in the parent) is compared first: a prefork server costs one
  comparison a descriptor.

CRIU's images name an object by a number that is equal for all who share it (core.ids.vm_id, files_id, fs_id,
sighand_id; fdinfo id).  Numbers start at 1; 0 means "none".
"""

from __future__ import annotations

from torpor.typed import Callable, Generic, Hashable, Iterable, NamedTuple, Sequence, TypeVar

T = TypeVar("T")

# What Compare returns: negative, 0 or positive in an order that does not change while the tasks stand still;
# UNORDERED for things that differ, where the kernel does not say in which order.
UNORDERED = 3
Compare = Callable[[T, T], int]


class Sorter(Generic[T]):
    """Sorts things into classes of sameness.  `classes[i]` lists what was found to be one object, first come first."""

    __slots__ = ("_compare", "_found", "_hints", "classes", "comparisons")

    def __init__(self, compare: Compare[T]) -> None:
        self._compare = compare
        self._found: dict[Hashable, list[int]] = {}  # cheap key -> indices into classes, in the order of compare
        self._hints: dict[tuple[Hashable, Hashable], int] = {}
        self.classes: list[list[T]] = []
        self.comparisons = 0

    def add(self, thing: T, key: Hashable = None, hint: Hashable = None) -> int:
        """The index of the class of `thing`, a new one if it is the same as nothing before.

        `key` must be equal for things that are the same; the more it differs for others, the better.  Things with the
        same `hint` (the descriptor's number) are compared first; it decides nothing.
        """
        ordered = self._found.get(key)
        if ordered is None:  # nothing that it could be the same as: nearly always
            index, where = -1, 0
            ordered = self._found[key] = []
        else:
            index, where = self._search(thing, ordered, self._hints.get((key, hint)))
        if index < 0:
            index = len(self.classes)
            self.classes.append([thing])
            ordered.insert(where, index)
        else:
            self.classes[index].append(thing)
        if hint is not None:
            self._hints[key, hint] = index
        return index

    def hint(self, key: Hashable, hint: Hashable, index: int) -> None:
        """Whatever comes with this key and hint is probably of class `index`."""
        self._hints[key, hint] = index

    def _ask(self, thing: T, index: int) -> int:
        self.comparisons += 1
        return self._compare(thing, self.classes[index][0])

    def _search(self, thing: T, ordered: list[int], likely: int | None) -> tuple[int, int]:
        """(index of the class, _) or (-1, where to insert)."""
        if likely is not None and self._ask(thing, likely) == 0:
            return likely, 0
        low, high = 0, len(ordered)
        while low < high:
            middle = (low + high) // 2
            order = self._ask(thing, ordered[middle])
            if order == 0:
                return ordered[middle], middle
            if order == UNORDERED:
                for index in ordered:
                    if self._ask(thing, index) == 0:
                        return index, 0
                return -1, len(ordered)
            if order < 0:
                high = middle
            else:
                low = middle + 1
        return -1, low


def group(things: Iterable[T], compare: Compare[T], key: Callable[[T], Hashable] | None = None) -> list[list[T]]:
    """The classes of sameness of `things`."""
    sorter = Sorter(compare)
    for thing in things:
        sorter.add(thing, key(thing) if key else None)
    return sorter.classes


class Ids(NamedTuple):
    """What a task owns or shares, as numbers (task_kobj_ids_entry); 0: it has none (a zombie)."""

    vm: int
    files: int
    fs: int
    sighand: int


class Kin(NamedTuple):
    """What `assign` needs to know of a task.

    The keys are anything cheap that is equal when the object is the same: for vm say (startstack, vsize, start_brk) of
    stat, for files the descriptors' numbers, for fs (cwd, root, umask), for sighand (SigIgn, SigCgt) of status.
    """

    tid: int
    relative: int = 0  # the task that it probably shares with, if with any: its leader or its parent
    alive: bool = True  # False for a zombie: it has lost all, and kcmp calls two nothings the same
    keys: tuple[Hashable, Hashable, Hashable, Hashable] = (None, None, None, None)  # vm, files, fs, sighand


class Comparisons(NamedTuple):
    """For each kind of object, compare(tid, tid)."""

    vm: Compare[int]
    files: Compare[int]
    fs: Compare[int]
    sighand: Compare[int]


def assign(tasks: Sequence[Kin], compare: Comparisons) -> dict[int, Ids]:
    """Object numbers for every task, from 1 in each kind, given in the order of `tasks` (parents first is best)."""
    numbers: dict[int, list[int]] = {task.tid: [] for task in tasks}
    for kind, comparison in enumerate(compare):
        sorter = Sorter(comparison)
        for task in tasks:
            if task.alive:
                key = task.keys[kind]
                index = sorter.add(task.tid, key, task.relative)
                sorter.hint(key, task.tid, index)
                numbers[task.tid].append(index + 1)
            else:
                numbers[task.tid].append(0)
    return {tid: Ids(*four) for tid, four in numbers.items()}
