# SPDX-License-Identifier: Apache-2.0
"""Planning address spaces, without a kernel: what an image's areas must look like, where the executor fits, what a
child can keep of what it inherits from its parent."""

from torpor.engine.area import PAGE as AREA_PAGE
from torpor.engine.executor import LEADER_AREA
from torpor.errors import ImageError, Refusal
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.schema.vma import VmaEntry
from torpor.memory import areas as vma
from torpor.typed import TYPE_CHECKING, Iterable, NamedTuple, Sequence

if TYPE_CHECKING:
    from torpor.arch.base import Arch
    from torpor.images.schema.mm import MmEntry

HOLE_FROM = 1 << 21
MARGIN = 1 << 20  # stack_guard_gap: nothing is put closer than this below a growing stack
BESIDE = 1 << 20  # what else is put where nobody has anything, at most: the kernel's areas, once aside, once on the way
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


def executors_size(count: int) -> int:
    """What so many executors in one address space need."""
    return AREA_PAGE + LEADER_AREA * count


def find_hole(size: int, occupied: Iterable[Span], user_end: int) -> int:
    """The lowest address at which `size` bytes are free between all the spans given.  Raises Refusal."""
    at = HOLE_FROM
    for start, end in sorted(occupied):
        if start - MARGIN >= at + size:
            break
        at = max(at, (end + 0xFFFF) & ~0xFFFF)
    if at + size > user_end:
        why = f"a restore needs {size >> 10:,} KiB of addresses that are free in all of it, and there are none"
        remedy = "let the program have less memory mapped when it is dumped, or dump its processes one by one"
        raise Refusal("the tree's memory leaves no room for Torpor's own", why, remedy, code="no-room")
    return at


def around_stub(size: int, spans: Sequence[Span], arch: "Arch") -> tuple[list[Span], bool]:
    """Where the first task may begin with something, for a tree with memory at `spans` in which executors of `size`
    bytes have to find a place; and whether its stack has to be limited for that (`Arch.short_stub_layout`)."""
    if arch.short_stub_layout:
        try:
            find_hole(size + BESIDE, [*spans, arch.stub_layout], arch.user_end)
        except Refusal:
            return list(arch.short_stub_layout), True
    return [arch.stub_layout], False


def check_room(subject: str, executors: int, spans: Sequence[Span], arch: "Arch") -> None:
    """At dump: will a restore find room for so many executors?  Where there are addresses in plenty, nobody asks.
    Raises Refusal."""
    if not arch.short_stub_layout:
        return
    size = executors_size(executors)
    try:
        find_hole(size + BESIDE, [*spans, *around_stub(size, spans, arch)[0]], arch.user_end)
    except Refusal as none:
        raise Refusal(subject, f"{none.what} ({none.why})", none.remedy, code=none.code) from None


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


def inherit(
    parents: Sequence[VmaEntry], own: Sequence[VmaEntry], accounted: tuple[set[int], set[int]], filled: set[int]
) -> Inherited:
    """Compare the private areas of parent and child.  An area is kept where both begin at the same address and are of
    the same kind; it may have grown or shrunk at its end.  What the parent never passed on (MADV_DONTFORK) is inherited
    here nevertheless, since advice is given when all are born: it is dropped.

    The two may also have nothing to do with each other (execve(2)), and begin at the same address by chance.

    accounted: of parent and child, the starts of areas that the kernel accounts for (VM_ACCOUNT) though they are not
    writable, as they were once; nothing would take that from an area that is kept.  filled: the child's that have
    pages: one without any would lose it with its right to be written to."""
    by_start = {area.start: area for area in parents if vma.is_private_memory(area)}
    kept: list[tuple[VmaEntry, VmaEntry]] = []
    create: list[VmaEntry] = []
    for area in own:
        if not vma.is_private_memory(area):
            continue
        twin = by_start.get(area.start)
        if (
            twin is not None
            and not _dont_fork(twin)
            and _alike(twin, area)
            and _accounted_alike(twin, area, accounted, filled)
        ):
            kept.append((twin, area))
            del by_start[area.start]
        else:
            create.append(area)
    return Inherited(kept, sorted((area.start, area.end) for area in by_start.values()), create)


def _dont_fork(area: VmaEntry) -> bool:
    return bool((area.madv or 0) & (1 << vma.ADVICE["dc"] | 1 << vma.ADVICE["wf"]))


def _accounted_alike(old: VmaEntry, new: VmaEntry, accounted: tuple[set[int], set[int]], filled: set[int]) -> bool:
    if new.prot & PROT_WRITE or new.flags & vma.MAP_NORESERVE:  # mprotect sees to it, or nobody
        return True
    theirs, own = accounted
    return new.start in filled if new.start in own else not (old.prot & PROT_WRITE or old.start in theirs)


def _alike(a: VmaEntry, b: VmaEntry) -> bool:
    return (
        a.flags & vma.KEPT_FLAGS == b.flags & vma.KEPT_FLAGS
        and not (a.flags & vma.MAP_GROWSDOWN and a.end != b.end)
        and a.shmid == b.shmid
        and (a.pgoff == b.pgoff or not a.shmid)
        and a.status == b.status
        and not (a.prot ^ b.prot) & PROT_MTE
    )
