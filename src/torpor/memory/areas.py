# SPDX-License-Identifier: Apache-2.0
"""Areas of an address space: what the kernel shows of them, as vma_entry messages.

The two-letter flags of smaps say what maps does not.  Everything that cannot be brought back is refused here.
Facts: proc_pid_smaps(5), fs/proc/task_mmu.c show_smap_vma_flags() of Linux 6.18.
"""

import ctypes
import os

from torpor.arch import native
from torpor.images.schema.vma import VmaEntry
from torpor.kernel.maps import Area
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import DumpTask, RestoreTask

REGULAR, STACK, VSYSCALL, VDSO, HEAP = 0x1, 0x2, 0x4, 0x8, 0x20
FILE_PRIVATE, FILE_SHARED, ANON_SHARED, ANON_PRIVATE = 0x40, 0x80, 0x100, 0x200
SYSVIPC, VVAR, MEMFD, GUARD = 0x400, 0x1000, 0x4000, 0x10000

MAP_SHARED, MAP_PRIVATE, MAP_DROPPABLE, MAP_ANONYMOUS = 0x1, 0x2, 0x8, 0x20
MAP_GROWSDOWN, MAP_HUGETLB = 0x100, 0x40000
MAP_LOCKED, MAP_NORESERVE = native().map_locked, native().map_noreserve
# What mmap(2) is told again to make an area; the other flags of an image come later, or are about how it was made.
KEPT_FLAGS = MAP_SHARED | MAP_PRIVATE | MAP_DROPPABLE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_NORESERVE

# smaps flag → MAP_* flag
_MAP_FLAGS = {"gd": MAP_GROWSDOWN, "lo": MAP_LOCKED, "nr": MAP_NORESERVE, "ht": MAP_HUGETLB}
# smaps flag → MADV_* number, whose bit stands in vma_entry.madv
ADVICE = {"sr": 2, "rr": 1, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18}

# smaps flags that forbid a dump: why, and what to do.
REFUSED_FLAGS = {
    "um": ("it is watched by a userfaultfd", "end the program that handles its page faults first"),
    "uw": ("it is write-protected through a userfaultfd", "end the program that handles its page faults first"),
    "ui": ("it is watched by a userfaultfd", "end the program that handles its page faults first"),
    "ss": ("it is a shadow stack", "run the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"),
    "pf": ("it maps device memory directly", "close the device first"),
    "io": ("it maps device memory", "close the device first"),
    "sf": ("it is mapped with MAP_SYNC, which Torpor does not restore yet", "use msync instead"),
    "pkey": (
        "it has a protection key (pkey_mprotect, or PROT_EXEC alone), which Torpor does not restore yet",
        "run the program without",
    ),
    "ht": ("it is made of hugetlb pages", "use transparent huge pages (madvise) instead"),
}
# Flags that need no care: rights, and what the kernel sets by itself or by the kind of file.
KNOWN_FLAGS = frozenset({
    "rd", "wr", "ex", "sh", "mr", "mw", "me", "ms", "de", "ac", "ar", "sd", "mm", "lf", "gu", "nl", "bt",
    "tp", "mt",
}) | frozenset(_MAP_FLAGS) | frozenset(ADVICE) | {"dp", "sl"}  # fmt: skip

# 32-bit ARM has [sigpage] beside [vvar], and [vectors] beyond the end of user memory.
UNNAMED = "??"  # what smaps shows of a flag for which the kernel has no letters
_KINDS = {
    "anon": 0, "heap": HEAP, "stack": 0, "vdso": VDSO, "vvar": VVAR, "vvar_vclock": VVAR, "sigpage": VVAR,
    "vsyscall": VSYSCALL, "vectors": VSYSCALL,
}  # fmt: skip
KERNEL_KINDS = frozenset({"vdso", "vvar", "vvar_vclock", "sigpage", "vsyscall", "vectors"})
REFUSED_KINDS = {
    "uprobes": ("uprobes are set in it", "remove them first"),
    "memfd-huge": ("it is made of hugetlb pages", "use transparent huge pages instead"),
    "sysv-huge": ("it is made of hugetlb pages", "use transparent huge pages instead"),
    "anon-huge": ("it is made of hugetlb pages", "use transparent huge pages instead"),
    "aio": ("asynchronous I/O (io_setup) cannot be dumped yet", "let the program end its aio contexts first"),
    "socket": ("a socket's ring buffer is mapped there", "close it first"),
    "io_uring": ("io_uring cannot be dumped", "run the program with io_uring turned off"),
    "perf": ("perf events cannot be dumped", "stop profiling first"),
    "anon_inode": ("it maps an object that Torpor does not know", "close it first"),
    "dmabuf": ("it maps a DMA buffer", "close the device first"),
    "secretmem": ("secret memory (memfd_secret) cannot be read from outside", "unmap it first"),
    "special": ("Torpor does not know this area of the kernel's", "use a newer Torpor"),
}

# What CRIU's images can say of an area in which nobody here puts back what was in it: bits of its status.
_NOT_RESTORED = {
    0x800: "is a socket's ring buffer", 0x2000: "belongs to asynchronous I/O (io_setup)", 0x8000: "is a shadow stack",
    0x20000: "has uprobes in it", 0x8000000: "was saved by a plugin of CRIU's",
}  # fmt: skip
_ANY_NOT_RESTORED = sum(_NOT_RESTORED)


SPARE_AREAS = 8  # that Torpor needs for itself, at a dump and at a restore


def most_areas() -> int:
    """How many areas an address space can have (vm.max_map_count: 65,530, unless somebody changed it)."""
    with open("/proc/sys/vm/max_map_count", "rb") as file:
        return int(file.read())


def zeros_merged() -> bool:
    """Whether KSM may have put the zero page in the place of pages full of zeros: it is set to (Linux 4.11), or was
    (the count of such pages came with 6.6)."""
    for name in ("use_zero_pages", "ksm_zero_pages"):
        try:
            with open(f"/sys/kernel/mm/ksm/{name}", "rb") as file:
                if int(file.read()):
                    return True
        except OSError:
            continue
    return False


def check_count(task: "DumpTask | RestoreTask", count: int, most: int) -> None:
    """Raises Refusal for an address space that can have no more areas: Torpor needs some of its own there."""
    if count > most - SPARE_AREAS:
        why = f"it has {count} areas of memory of {most} allowed (vm.max_map_count), and Torpor needs some there"
        raise task.refusal(why, f"sysctl vm.max_map_count={count + 1000}", code="too-many-areas")


def check_kinds(task: "RestoreTask", areas: "list[VmaEntry]") -> None:
    """Raises Refusal for an area that would come back as ordinary memory, which it was not."""
    for area in areas:
        if area.status & _ANY_NOT_RESTORED or area.flags & MAP_HUGETLB:
            kinds = (why for bit, why in _NOT_RESTORED.items() if area.status & bit)
            why = f"its area {area.start:#x}-{area.end:#x} {next(kinds, 'is made of hugetlb pages')}"
            raise task.refusal(f"{why}, which Torpor does not restore")


def with_names(flags: dict[int, frozenset[str]]) -> dict[int, frozenset[str]]:
    """Flags with "lf" for locked pages that are not to be populated, where this kernel shows those without letters (as
    Linux 6.1 does)."""
    from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap

    from torpor.kernel.maps import read_vm_flags
    from torpor.kernel.syscall import call

    page = mmap(-1, PAGESIZE, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    try:
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        call("mlock2", at, PAGESIZE, 1)  # MLOCK_ONFAULT
        shown = read_vm_flags(os.getpid()).get(at, frozenset())
    except OSError:
        return flags
    if UNNAMED not in shown or "lo" not in shown:
        return flags
    return {
        start: (found - {UNNAMED}) | {"lf"} if {UNNAMED, "lo"} <= found else found for start, found in flags.items()
    }


def is_private_memory(entry: VmaEntry) -> bool:
    """Whether pages of this area are the task's own: stored in its pagemap."""
    return bool(entry.flags & (MAP_PRIVATE | MAP_DROPPABLE)) and not entry.status & (VDSO | VVAR | VSYSCALL)


def droppable(entries: "list[VmaEntry]") -> list[tuple[int, int]]:
    """Where pages may be lost at any time, which their owner expects: they never come back from images.  The vDSO's
    getrandom has its state there, and would give the same numbers after every restore."""
    return [(entry.start, entry.end) for entry in entries if entry.flags & MAP_DROPPABLE]


def has_droppable() -> bool:
    """Whether this kernel has MAP_DROPPABLE (6.11)."""
    from torpor.kernel.syscall import call, map_memory

    try:
        call("munmap", map_memory(1, 0, MAP_DROPPABLE | MAP_ANONYMOUS), 1)
    except OSError:
        return False
    return True


def make_undroppable(entries: "list[VmaEntry]") -> None:
    """On a kernel without MAP_DROPPABLE, which the vDSO's getrandom wants: ordinary memory, which no child and no core
    dump gets either.  Under such a kernel, getrandom becomes the system call (`torpor.memory.vdso`)."""
    droppable = [entry for entry in entries if entry.flags & MAP_DROPPABLE]
    if droppable and not has_droppable():
        for entry in droppable:
            entry.flags = entry.flags & ~MAP_DROPPABLE | MAP_PRIVATE
            entry.madv = (entry.madv or 0) | 1 << ADVICE["wf"] | 1 << ADVICE["dd"]


def describe(task: "DumpTask", area: Area, kind: str, flags: frozenset[str]) -> tuple[int, int, int]:
    """What is the same for all areas of a sort: MAP_* flags, status, a bit for each MADV_* number.  Raises Refusal."""
    key = kind, area.shared, flags
    common = _common.get(key)
    if common is None:
        common = _common[key] = _describe(task, area, kind, flags)
    return common


_common: dict[tuple[str, bool, frozenset[str]], tuple[int, int, int]] = {}  # ten thousand areas are of few sorts


def _describe(task: "DumpTask", area: Area, kind: str, flags: frozenset[str]) -> tuple[int, int, int]:
    where = f"area {area.start:#x}-{area.end:#x} {area.path}".rstrip()
    if kind in REFUSED_KINDS:
        raise task.refusal(*_worded(where, REFUSED_KINDS[kind]))
    if kind in KERNEL_KINDS:
        flags = frozenset()
    for flag in flags & REFUSED_FLAGS.keys():
        raise task.refusal(*_worded(where, REFUSED_FLAGS[flag]))
    for flag in flags - KNOWN_FLAGS:
        raise task.refusal(f"{where} has a flag that Torpor does not know: {flag}", "use a newer Torpor")
    map_flags = sum(bit for flag, bit in _MAP_FLAGS.items() if flag in flags)
    madvise = sum(1 << number for flag, number in ADVICE.items() if flag in flags)
    if area.shared:
        map_flags |= MAP_SHARED
    elif "dp" in flags:
        map_flags |= MAP_DROPPABLE
        madvise &= ~(1 << ADVICE["wf"] | 1 << ADVICE["dd"])  # come with it
    else:
        map_flags |= MAP_PRIVATE
    if kind in _KINDS:
        status = REGULAR | ANON_PRIVATE | _KINDS[kind]
        if kind in ("vsyscall", "vectors"):
            status = VSYSCALL | ANON_PRIVATE
        map_flags |= MAP_ANONYMOUS
    elif kind == "file":
        status = REGULAR | (FILE_SHARED if area.shared else FILE_PRIVATE)
    elif kind in ("shmem", "memfd"):
        status = REGULAR | MEMFD | (FILE_SHARED if area.shared else FILE_PRIVATE)
    elif kind == "sysv":
        status = REGULAR | ANON_SHARED | SYSVIPC
        map_flags |= MAP_ANONYMOUS
    else:
        raise task.refusal(f"{where} is of a kind that Torpor does not know: {kind}", "use a newer Torpor")
    return map_flags, status, madvise


def _worded(where: str, reason: tuple[str, str]) -> tuple[str, str]:
    return f"{where}: {reason[0]}", reason[1]
