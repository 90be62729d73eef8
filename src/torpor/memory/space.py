# SPDX-License-Identifier: Apache-2.0
"""One task's address space as the images tell of it, checked, and questions about its areas.  Touches no task."""

import os
from errno import ENOMEM

from torpor.arch import native
from torpor.engine.executor import MAP_FIXED_NOREPLACE
from torpor.errors import ImageError
from torpor.images import kinds
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.pages import PageStore
from torpor.images.schema.vma import VmaEntry
from torpor.kernel.syscall import call, map_memory
from torpor.memory import areas as vma
from torpor.memory import cow, kernels_areas, layout
from torpor.memory.layout import Span
from torpor.memory.tags import Tags
from torpor.resources import lacking, own
from torpor.typed import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from torpor.resources.context import Restore, RestoreTask

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
LOWEST = 1 << 16  # vm.mmap_min_addr's default, or more than that, of every architecture
EVERYWHERE = (1 << 47) - (1 << 16)  # every 64-bit machine has addresses up to here, or makes them as they are used
TRIAL = vma.MAP_PRIVATE | vma.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
AT_PAGESZ = 6
MADV_GUARD_INSTALL, PR_SET_VMA, PR_SET_VMA_ANON_NAME = 102, 0x53564D41, 0
_OF_KERNEL = vma.VDSO | vma.VVAR | vma.VSYSCALL


class AddressSpace:
    """What the images say of one task's memory."""

    def __init__(self, restore: "Restore", task: "RestoreTask") -> None:
        self.task = task
        name = kinds.MM.file_name(task.pid)
        mm = task.mm if task.mm is not None else restore.images.one(kinds.MM, task.pid)
        task.mm = self.mm = mm
        self._check_page_size()
        self.areas = layout.checked(name, mm, native().far_end or native().user_end)
        vma.check_kinds(task, self.areas)
        self.dropped = vma.droppable(self.areas)
        vma.make_undroppable(self.areas)
        self._check_lowest()
        self._check_highest()
        vma.check_count(task, len(self.areas), vma.most_areas())
        self.private = [area for area in self.areas if vma.is_private_memory(area)]
        self.guards = [(area.start, area.end) for area in mm.vmas if area.status & vma.GUARD]
        kernels_areas.warn_of_vsyscall(restore, task, mm.vmas)
        self.pages = PageStore(restore.images, task.pid)
        extras = restore.images.find(kinds.TORPOR_TASK, task.pid)
        self.extras = extras
        self.accounted = set(extras.accounted) if extras else set()
        self._check_kernel(restore)
        self.tags = Tags(restore.images, self)
        self._check_pages()
        self.with_pages = touched(self.private, [(r.vaddr, r.vaddr + r.nr_pages * PAGE) for r, _ in self.pages.pieces])
        self.with_pages -= {start for start, _ in self.dropped}
        self.once_writable = self.accounted if extras else self.with_pages  # CRIU's images do not tell
        self.protection: dict[int, int] = {}  # of private areas, by their starts: what it is for the moment
        self._runs: list[cow.Run] | None = None

    def _check_page_size(self) -> None:
        """Images count in pages, but only the auxiliary vector says how large these are."""
        vector = self.mm.mm_saved_auxv
        size = dict(zip(vector[::2], vector[1::2], strict=False)).get(AT_PAGESZ, PAGE)
        if size != PAGE:
            raise self.task.refusal(
                f"it comes from a kernel with pages of {size} bytes, and this one's have {PAGE}",
                "restore it under a kernel with pages of that size", code="page-size",
            )  # fmt: skip

    def _check_kernel(self, restore: "Restore") -> None:
        """What this kernel does not have is an error even for no memory at all (mseal, madvise, prctl)."""
        wanted: dict[tuple[str, tuple[int, ...]], tuple[int, str]] = {}  # by the call: an area that needs it
        for start, _ in self.guards:
            wanted["madvise", (0, 0, MADV_GUARD_INSTALL)] = start, "has guard pages (MADV_GUARD_INSTALL)"
        for area in self.areas:
            for advice in range(64) if area.madv else ():
                if (area.madv or 0) >> advice & 1:
                    wanted["madvise", (0, 0, advice)] = area.start, f"has the advice {advice} (madvise)"
        for start in self.extras.sealed if self.extras is not None else ():
            wanted["mseal", (0, 0, 0)] = start, "is sealed (mseal)"
        for named in self.extras.names if self.extras is not None else ():
            wanted["prctl", (PR_SET_VMA, PR_SET_VMA_ANON_NAME, 0, 0, 0)] = named.start, "has a name (PR_SET_VMA)"
        for (name, args), (start, has) in wanted.items():
            if lacking.error_of(restore, name, *args):
                restore.problem(lacking.refusal(self.task.subject, f"its memory at {start:#x} {has}"))

    def _check_lowest(self) -> None:
        """Memory at address 0, say, as Wine has it: a right of its own, below a line that the administrator draws."""
        lowest = self.areas[0].start if self.areas else LOWEST
        if lowest >= LOWEST:
            return
        allowed = own.number_file("/proc/sys/vm/mmap_min_addr") or 0
        if lowest < allowed and not own.facts().has(own.CAP_SYS_RAWIO):
            raise self.task.refusal(
                f"it has memory at {lowest:#x}, and none may be below {allowed:#x} here (vm.mmap_min_addr)",
                f"run Torpor with CAP_SYS_RAWIO, or: sysctl vm.mmap_min_addr={lowest}",
                code="no-rights",
            )

    def _check_highest(self) -> None:
        """How far addresses reach is a matter of the CPU and of the kernel: it is tried."""
        last = self.areas[-1].end - PAGE if self.areas else 0
        if last < EVERYWHERE:
            return
        try:
            call("munmap", map_memory(PAGE, 0, TRIAL, at=last), PAGE)
        except OSError as error:
            if error.errno == ENOMEM:
                raise self.task.refusal(
                    f"it has memory at {self.areas[-1].start:#x}, further up than this machine's programs can have any",
                    "restore it on a CPU, and under a kernel, with addresses that long", code="cpu-feature",
                ) from None  # fmt: skip

    def _check_pages(self) -> None:
        """Every stored page lies in a private area of the task's."""
        text = [area for area in self.areas if area.status & vma.VDSO]
        private = sorted([*self.private, *text], key=lambda area: area.start) if text else self.private
        at = 0
        for run, level in self.pages.pieces:
            if level is None:
                raise ImageError(
                    f"the memory of task {self.task.pid} is not in these images",
                    "they were made by --lazy-pages",
                    "restore with the page server that has it",
                )
            start, end = run.vaddr, run.vaddr + run.nr_pages * PAGE
            while start < end:
                while at < len(private) and private[at].end <= start:
                    at += 1
                if at == len(private) or private[at].start > start:
                    raise ImageError(
                        f"the pagemap of task {self.task.pid} is mangled", f"no private area is at {start:#x}"
                    )
                start = min(end, private[at].end)

    def runs(self) -> list[cow.Run]:
        """Stored pages: (address, length, pages image, offset in it)."""
        if self._runs is None:
            stored = [
                cow.Run(run.vaddr, run.nr_pages * PAGE, level, run.offset)
                for run, level in self.pages.pieces
                if level is not None
            ]
            text = [(area.start, area.end) for area in self.areas if area.status & vma.VDSO]
            # The pages beside the vDSO may be in a run with its own.
            self._runs = cow.split(stored, sorted(text + self.dropped))[0]
        return self._runs


def descriptor_id(area: VmaEntry) -> int:
    """The id in files.img of what is mapped; 0: anonymous."""
    return area.shmid if area.status & (vma.FILE_PRIVATE | vma.FILE_SHARED) else 0


def is_poked(area: VmaEntry) -> bool:
    """Whether changed pages are written through /proc/PID/mem: program text with a debugger's breakpoint, say."""
    return bool(area.status & vma.FILE_PRIVATE) and area.prot & PROT_EXEC != 0 and not area.prot & PROT_WRITE


def for_writing(area: VmaEntry) -> bool:
    return bool(area.flags & vma.MAP_SHARED) and (bool(area.prot & PROT_WRITE) or (area.fdflags or 0) & 3 == os.O_RDWR)


def is_shared_memory(area: VmaEntry) -> bool:
    """Whether it is to be mapped when the whole tree exists."""
    return not vma.is_private_memory(area) and not area.status & _OF_KERNEL


def together(areas: Sequence[VmaEntry], changing: "set[int]") -> list[list[VmaEntry]]:
    """Anonymous areas, each alone or with its neighbours: those that are to be writable for the moment are one area of
    the kernel's then, however they are mapped, and one call makes it."""
    spans: list[list[VmaEntry]] = []
    last: VmaEntry | None = None
    for area in areas:
        if descriptor_id(area):
            continue
        if (
            last is not None
            and last.end == area.start
            and area.start in changing
            and last.start in changing
            and last.flags & vma.KEPT_FLAGS == area.flags & vma.KEPT_FLAGS
            and not area.flags & (vma.MAP_GROWSDOWN | vma.MAP_SHARED)
            and not (last.prot ^ area.prot) & layout.PROT_MTE
        ):
            spans[-1].append(area)
        else:
            spans.append([area])
        last = area
    return spans


def touched(areas: Sequence[VmaEntry], filled: Sequence[Span]) -> set[int]:
    """Starts of the areas in which pages are stored; both sorted."""
    found: set[int] = set()
    at = 0
    for area in areas:
        while at < len(filled) and filled[at][1] <= area.start:
            at += 1
        if at == len(filled):
            break
        if filled[at][0] < area.end:
            found.add(area.start)
    return found
