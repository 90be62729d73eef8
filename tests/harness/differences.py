# SPDX-License-Identifier: Apache-2.0
"""The differences of two views of a tree (procview.py), in words.

A view is one flat dictionary: a path such as ("task 123", "area 7f00-7f10", "flags") → a value.  Comparing is one loop.
Numbers that the kernel makes up anew (inodes of pipes, sockets, memfds and deleted files; which descriptors are one
description) are wrapped in `Same`: they may change, but consistently: what was one object must be one object, what were
two must be two.  Neighbouring areas that differ in nothing visible merge or not by history, so they are merged here.
"""

import os
import re
from collections.abc import Hashable, Iterable
from typing import NamedTuple

Key = tuple[str, ...]


class Same(NamedTuple):
    """A number of the kernel's own making: equal when it names the same object on each side throughout."""

    kind: str
    number: Hashable


class Area(NamedTuple):
    """One line of smaps with what belongs to it."""

    start: int
    end: int
    offset: int
    protection: str
    name: str
    file: "str | Same"
    flags: frozenset[str]
    page_size: str
    key: str


class Areas(NamedTuple):
    """All areas of a task, as the kernel divides them."""

    areas: tuple[Area, ...]

    def merged(self, ignored: frozenset[str]) -> list[Area]:
        """Neighbours that differ in nothing visible as one; without the flags that a tool may change."""
        found: list[Area] = []
        for whole in self.areas:
            area = whole._replace(flags=whole.flags - ignored)
            if found and found[-1].end == area.start and found[-1][3:] == area[3:]:
                last = found[-1]
                if area.offset == -1 or last.offset + (area.start - last.start) == area.offset:
                    found[-1] = last._replace(end=area.end)
                    continue
            found.append(area)
        return found


Value = str | int | frozenset[str] | tuple[int, ...] | Same | Areas
View = dict[Key, Value]


def renumber(seen: View, inodes: dict[tuple[int, int], int]) -> View:
    """The view, had these files (device, inode) those inodes.  The devices that areas show are not those of stat(2) on
    every file system."""
    of_any_device = {old: new for (_, old), new in inodes.items()}

    def of_area(file: str | Same) -> str | Same:
        device, _, inode = file.partition(" ") if isinstance(file, str) else ("", "", "")
        return f"{device} {of_any_device[int(inode)]}" if inode.isdigit() and int(inode) in of_any_device else file

    def of_descriptor(file: str) -> str:
        device, _, inode = file.partition(" ")
        major, _, minor = device.partition(":")
        key = os.makedev(int(major, 16), int(minor, 16)), int(inode)
        return f"{device} {inodes[key]}" if key in inodes else file

    changed: View = {}
    for key, value in seen.items():
        if isinstance(value, Areas):
            value = Areas(tuple(area._replace(file=of_area(area.file)) for area in value.areas))
        elif key[-1] == "inode" and isinstance(value, str):
            value = of_descriptor(value)
        changed[key] = value
    return changed


class Tolerance(NamedTuple):
    """A difference that a tool (never Torpor) leaves, and why.

    pattern: found in the sentence about it.  flags: words of VmFlags that are not compared.
    bits: the value is a hexadecimal mask in which these bits may have appeared, and nothing else.
    """

    why: str
    pattern: str = ""
    flags: frozenset[str] = frozenset()
    bits: int = 0

    def covers(self, sentence: str, before: Value | None, after: Value | None) -> bool:
        if not self.pattern or not re.search(self.pattern, sentence):
            return False
        if not self.bits:
            return True
        if not isinstance(before, str) or not isinstance(after, str):
            return False
        return int(after, 16) & ~self.bits == int(before, 16) & ~self.bits


def _with_areas(seen: View, ignored: frozenset[str], alike: set[Key]) -> View:
    """The view with each area as entries of its own; without the tasks whose areas are `alike`."""
    spread = {key: value for key, value in seen.items() if type(value) is not Areas}
    for key, value in seen.items():
        if type(value) is not Areas or key in alike:
            continue
        for area in value.merged(ignored):
            at = (key[0], f"area {area.start:x}-{area.end:x}")
            spread[(*at, "name")] = area.name
            spread[(*at, "protection")] = area.protection
            spread[(*at, "file")] = area.file
            spread[(*at, "offset")] = area.offset
            spread[(*at, "VmFlags")] = area.flags
            spread[(*at, "page size")] = area.page_size
            spread[(*at, "protection key")] = area.key
    return spread


def _text(value: Value) -> str:
    if isinstance(value, Same):
        return f"{value.kind} {value.number}"
    if isinstance(value, frozenset):
        return " ".join(sorted(value))
    return repr(value) if isinstance(value, str) else str(value)


def _change(before: Value, after: Value) -> str:
    if isinstance(before, frozenset) and isinstance(after, frozenset):
        words = [f"lost {' '.join(sorted(before - after))}"] if before - after else []
        words += [f"gained {' '.join(sorted(after - before))}"] if after - before else []
        return ", ".join(words)
    if isinstance(before, Same):
        return f"is no longer the same {before.kind} as before, seen from what else refers to it"
    return f"was {_text(before)}, is {_text(after)}"


class Renaming:
    """Which of the old numbers is which of the new: a bijection that grows while comparing."""

    def __init__(self) -> None:
        self.there: dict[Same, Same] = {}
        self.back: dict[Same, Same] = {}

    def agrees(self, before: Same, after: Same) -> bool:
        if before.kind != after.kind:
            return False
        known, source = self.there.get(before), self.back.get(after)
        if known is None and source is None:
            self.there[before], self.back[after] = after, before
            return True
        return known == after and source == before


def differences(before: View, after: View, tolerate: Iterable[Tolerance] = ()) -> list[str]:
    """What changed, one sentence a change; [] when nothing did."""
    tolerate = list(tolerate)
    ignored = frozenset().union(*(one.flags for one in tolerate))
    alike = {
        key for key, value in before.items()
        if type(value) is Areas and value == after.get(key) and all(type(area.file) is str for area in value.areas)
    }  # fmt: skip
    before, after = _with_areas(before, ignored, alike), _with_areas(after, ignored, alike)
    names = {key[0]: value for key, value in before.items() if key[1:] == ("comm",)}
    renaming = Renaming()
    found: list[str] = []

    def tell(key: Key, text: str) -> None:
        who = [f"{key[0]} ({names[key[0]]})" if key[0] in names else key[0], *key[1:]]
        if len(key) > 2 and (*key[:2], "name") in before:
            who[1] += f" ({before[(*key[:2], 'name')] or 'anonymous'})"
        sentence = ", ".join(who) + ": " + text
        if not any(one.covers(sentence, before.get(key), after.get(key)) for one in tolerate):
            found.append(sentence)

    here = there = set[Key]()
    if before.keys() != after.keys():
        here, there = _prefixes(before), _prefixes(after)
    told: set[Key] = set()
    for key, value in before.items():
        if key not in after:
            # Is a whole task, area or descriptor missing?  Then one sentence, about its first fact, is enough.
            whole = next((key[:n] for n in range(1, len(key)) if key[:n] not in there), key)
            if whole not in told:
                tell(key, f"was {_text(value)}, is gone")
            told.add(whole)
            continue
        now = after[key]
        if type(value) is Same and type(now) is Same:
            if not renaming.agrees(value, now):
                tell(key, _change(value, now))
        elif value != now:
            tell(key, _change(value, now))
    for key, value in after.items():
        if key in before:
            continue
        whole = next((key[:n] for n in range(1, len(key)) if key[:n] not in here), key)
        if whole not in told:
            tell(key, f"is new: {_text(value)}")
            told.add(whole)
    return found


def _prefixes(view: View) -> set[Key]:
    return {key[:length] for key in view for length in range(1, len(key) + 1)}
