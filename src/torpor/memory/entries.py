# SPDX-License-Identifier: Apache-2.0
"""The areas of an address space as the entries of its mm image.

Ten thousand areas are of a few sorts: what is the same for all of a sort is encoded once, and each has its addresses
put before it.  That takes a third of the time that a message for each would take.
"""

from torpor.images.message import Encoded
from torpor.images.schema.vma import VmaEntry
from torpor.images.wire import varint
from torpor.kernel.maps import MAP_SHARED
from torpor.memory import areas as vma
from torpor.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torpor.memory.dump import AddressSpace

PROT_WRITE = 2
_START, _END = VmaEntry.tag("start"), VmaEntry.tag("end")
_NOTHING: frozenset[str] = frozenset()


class _Sort:
    """What areas have in common whose kind, protection and flags are the same."""

    def __init__(self, space: "AddressSpace", start: int, what: str, prot: int, shared: bool,
                 marks: frozenset[str], common: tuple[int, int, int]) -> None:  # fmt: skip
        flags, self.status, madvise = common
        self.fixed = {"prot": prot, "flags": flags, "status": self.status, "fd": -1, "madv": madvise or None}
        self.has_file = not self.status & vma.ANON_PRIVATE  # or a segment: then the offset counts
        self.rest = VmaEntry.part(pgoff=0, shmid=0, **self.fixed)  # where there is none
        self.starts: list[list[int]] = []  # where an area of the sort is to be noted
        if "sl" in marks and what not in vma.KERNEL_KINDS:
            self.starts.append(space.sealed)
        if "bt" in marks:
            self.starts.append(space.guarded)
        if "mt" in marks:
            self.starts.append(space.tagged)
        if "lf" in marks:
            self.starts.append(space.lock_on_fault)
        if "ac" in marks and not shared and not prot & PROT_WRITE:
            self.starts.append(space.accounted)


def describe(space: "AddressSpace") -> list[Any]:
    """After the thaw: the areas' entries, and behind them each run of guard pages as an entry of its own, as CRIU has
    it.  [vvar] and [vvar_vclock] are one area there.  Raises Refusal."""
    flags, behind, task = space.flags, space.behind, space.task
    # New mappings of a task under mlockall(MCL_FUTURE) are locked: ours tells, nothing else does.
    ours = flags.get(space.runner_base, _NOTHING)
    arch = task.leader.arch
    space.lock_future = (arch.mcl_future if "lo" in ours else 0) | (arch.mcl_onfault if "lf" in ours else 0)
    sorts: dict[tuple[str, int, int, frozenset[str]], _Sort] = {}
    entries: list[Any] = []  # Encoded
    add, new = entries.append, Encoded
    vvar_start, vvar_end = 0, -1
    for area, what in zip(task.areas, space.kinds, strict=True):
        start, end, prot, sharing, offset, _, _, path = area
        marks = flags.get(start, _NOTHING)
        key = what, prot, sharing, marks
        sort = sorts.get(key)
        if sort is None:
            shared = sharing == MAP_SHARED
            sort = sorts[key] = _Sort(space, start, what, prot, shared, marks, vma.describe(task, area, what, marks))
        for starts in sort.starts:
            starts.append(start)
        rest = sort.rest
        if sort.has_file:
            shmid, fdflags = behind[start]
            rest = VmaEntry.part(pgoff=offset, shmid=shmid, fdflags=fdflags, **sort.fixed)
        elif path and path.startswith("[anon:"):
            space.names[start] = path[6:-1]
        if sort.status & vma.VVAR:
            if vvar_end == start:
                start = vvar_start
                entries.pop()
            vvar_start, vvar_end = start, end
        add(new(b"".join((_START, varint(start), _END, varint(end), rest))))
    return entries + [
        VmaEntry(start=start, end=end, pgoff=0, shmid=0, prot=0, flags=0, status=vma.GUARD, fd=-1)
        for start, end in space.guards
    ]
