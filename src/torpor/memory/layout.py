# SPDX-License-Identifier: Apache-2.0
"""Planning address spaces, without a kernel: what an image's areas must look like, where the executor fits, what a
child can keep of what it inherits from its parent."""

from torpor.errors import ImageError
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.schema.vma import VmaEntry
from torpor.memory import areas as vma
from torpor.typed import TYPE_CHECKING, Iterable, NamedTuple, Sequence

if TYPE_CHECKING:
    from torpor.images.schema.mm import MmEntry

HOLE_FROM = 1 << 21
MARGIN = 1 << 20  # stack_guard_gap: nothing is put closer than this below a growing stack
MAX_AREAS = 1 << 20
PROT_WRITE, PROT_EXEC = 2, 4
PROT_MTE = 0x20  # of aarch64; images have it elsewhere, see memory/tags.py

Span = tuple[int, int]


def checked(name: str, mm: "MmEntry", user_end: int) -> list[VmaEntry]:
    """The areas of an mm image, sane: sorted, disjoint, whole pages, in user space.  Raises ImageError."""
    if len(mm.vmas) > MAX_AREAS:
        raise ImageError(f"{name} is mangled", f"it has {len(mm.vmas)} areas")
    end = 0
    for area in mm.vmas:
        start, stop = area.start, area.end
        if start % PAGE or stop % PAGE or start >= stop:
            raise _mangled(name, area, "cannot be")
        if area.status & (vma.VSYSCALL | vma.GUARD):
            if area.status & vma.GUARD and not area.status & vma.VSYSCALL and stop > user_end:
                raise _mangled(name, area, "lies outside of user memory")
            continue
        if start < end:
            raise _mangled(name, area, "is out of order or overlaps")
        if stop > user_end:
            raise _mangled(name, area, "lies outside of user memory")
        if area.prot & ~7 or area.pgoff % PAGE:
            raise _mangled(name, area, "has impossible protection or offset")
        end = stop
    return [area for area in mm.vmas if not area.status & (vma.VSYSCALL | vma.GUARD)]


def _mangled(name: str, area: VmaEntry, why: str) -> ImageError:
    return ImageError(f"{name} is mangled", f"the area {area.start:#x}-{area.end:#x} {why}")


def find_hole(size: int, occupied: Iterable[Span], user_end: int) -> int:
    """The lowest address at which `size` bytes are free between all the spans given.  Raises ImageError."""
    at = HOLE_FROM
    for start, end in sorted(occupied):
        if start - MARGIN >= at + size:
            break
        at = max(at, (end + 0xFFFF) & ~0xFFFF)
    if at + size > user_end:
        raise ImageError("there is no room for Torpor's own memory in these address spaces")
    return at


def merged(spans: Iterable[Span]) -> list[Span]:
    """All of them, sorted; what overlaps or follows at once is one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def while_filled(prot: int) -> int:
    """The protection of an area while its pages come.  Where the instruction cache does not follow what is written
    (ARM), the kernel sees to it when a page becomes executable: so none is that before it has its content."""
    return (prot | PROT_WRITE) & ~PROT_EXEC


class Inherited(NamedTuple):
    """What a child keeps of its parent's areas: `keep` pairs (parent's, own), `drop` spans, `create` own areas."""

    keep: list[tuple[VmaEntry, VmaEntry]]
    drop: list[Span]
    create: list[VmaEntry]


def inherit(parents: Sequence[VmaEntry], own: Sequence[VmaEntry]) -> Inherited:
    """Compare the private areas of parent and child.  An area is kept where both begin at the same address and are of
    the same kind; it may have grown or shrunk at its end.  What the parent never passed on (MADV_DONTFORK) is inherited
    here nevertheless, since advice is given when all are born: it is dropped."""
    by_start = {area.start: area for area in parents if vma.is_private_memory(area)}
    kept: list[tuple[VmaEntry, VmaEntry]] = []
    create: list[VmaEntry] = []
    for area in own:
        if not vma.is_private_memory(area):
            continue
        twin = by_start.get(area.start)
        if twin is not None and not _dont_fork(twin) and _alike(twin, area):
            kept.append((twin, area))
            del by_start[area.start]
        else:
            create.append(area)
    return Inherited(kept, sorted((area.start, area.end) for area in by_start.values()), create)


def _dont_fork(area: VmaEntry) -> bool:
    return bool((area.madv or 0) & (1 << vma.ADVICE["dc"] | 1 << vma.ADVICE["wf"]))


def _alike(a: VmaEntry, b: VmaEntry) -> bool:
    mask = vma.MAP_SHARED | vma.MAP_PRIVATE | vma.MAP_DROPPABLE | vma.MAP_ANONYMOUS | vma.MAP_GROWSDOWN
    return (
        a.flags & mask == b.flags & mask
        and not (a.flags & vma.MAP_GROWSDOWN and a.end != b.end)
        and a.shmid == b.shmid
        and (a.pgoff == b.pgoff or not a.shmid)
        and a.status == b.status
        and not (a.prot ^ b.prot) & PROT_MTE
    )
