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
    """What areas have in common whose kind, protection and flags are the same, in whichever task."""

    def __init__(self, what: str, prot: int, sharing: int, marks: frozenset[str], common: tuple[int, int, int]) -> None:
        flags, self.status, madvise = common
        self.fixed = {"prot": prot, "flags": flags, "status": self.status, "fd": -1, "madv": madvise or None}
        self.has_file = not self.status & vma.ANON_PRIVATE  # or a segment: then the offset counts
        self.rest = VmaEntry.part(pgoff=0, shmid=0, **self.fixed)  # where there is none
        self.rests: dict[tuple[int, int, int | None], bytes] = {}  # forked tasks have the same files at the same places
        self.noted: list[str] = []  # the lists of AddressSpace in which an area of the sort is to be noted
        if "sl" in marks and what not in vma.KERNEL_KINDS:
            self.noted.append("sealed")
        if "bt" in marks:
            self.noted.append("guarded")
        if "mt" in marks:
            self.noted.append("tagged")
        if "lf" in marks:
            self.noted.append("lock_on_fault")
        if "ac" in marks and sharing != MAP_SHARED and not prot & PROT_WRITE:
            self.noted.append("accounted")


Sorts = dict[tuple[str, int, int, frozenset[str]], _Sort]


def describe(space: "AddressSpace", sorts: Sorts) -> list[Any]:
    """After the thaw: the areas' entries, and behind them each run of guard pages as an entry of its own, as CRIU has
    it.  [vvar] and [vvar_vclock] are one area there.  `sorts` is kept for the next address space.  Raises Refusal."""
    flags, behind, task = space.flags, space.behind, space.task
    # New mappings of a task under mlockall(MCL_FUTURE) are locked: ours tells, nothing else does.
    ours = flags.get(space.runner_base, _NOTHING)
    arch = task.leader.arch
    space.lock_future = (arch.mcl_future if "lo" in ours else 0) | (arch.mcl_onfault if "lf" in ours else 0)
    entries: list[Any] = []  # Encoded
    add, new = entries.append, Encoded
    vvar_start, vvar_end = 0, -1
    for area, what in zip(task.areas, space.kinds, strict=True):
        start, end, prot, sharing, offset, _, _, path = area
        marks = flags.get(start, _NOTHING)
        key = what, prot, sharing, marks
        sort = sorts.get(key)
        if sort is None:
            sort = sorts[key] = _Sort(*key, vma.describe(task, area, what, marks))
        for noted in sort.noted:
            getattr(space, noted).append(start)
        rest = sort.rest
        if sort.has_file:
            rest = sort.rests.get(of_file := (offset, *behind[start]), b"")
            if not rest:
                pgoff, shmid, fdflags = of_file
                rest = sort.rests[of_file] = VmaEntry.part(pgoff=pgoff, shmid=shmid, fdflags=fdflags, **sort.fixed)
        elif path and path.startswith("[anon:"):
            space.names[start] = path[6:-1]
        if sort.status & vma.VVAR and what != "sigpage":
            if vvar_end == start:
                start = vvar_start
                entries.pop()
            vvar_start, vvar_end = start, end
        add(new(b"".join((_START, varint(start), _END, varint(end), rest))))
    return entries + [
        VmaEntry(start=start, end=end, pgoff=0, shmid=0, prot=0, flags=0, status=vma.GUARD, fd=-1)
        for start, end in space.guards
    ]
