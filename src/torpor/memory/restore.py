# SPDX-License-Identifier: Apache-2.0
"""Restoring address spaces, in one walk from the root.

A task's private areas are put at their final addresses and filled *before* its children are forked, so that pages that
a parent shared with its children are shared again.  A child keeps what it inherits, compares it with its own image, and
reads only the pages that differ.  Shared and file areas, advice, locks and the kernel's notion of the layout (brk,
arguments, auxiliary vector) come when the whole tree exists.

The task reads its pages itself: one preadv(2) fills up to 1,024 runs from the page cache.
"""

import fcntl
import os
import struct
from collections.abc import Sequence

from torpor.arch import native
from torpor.engine.area import PAGE as AREA_PAGE
from torpor.engine.executor import LEADER_AREA, SCM_MAX_FD, Executor
from torpor.engine.program import Load32, Program
from torpor.errors import ImageError
from torpor.images import kinds
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.pages import PageStore
from torpor.images.schema.vma import VmaEntry
from torpor.kernel.maps import kind, read_maps
from torpor.memory import areas as vma
from torpor.memory import cow, layout, segments, sysv, vdso_place
from torpor.memory.layout import Span
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Restore, RestoreTask

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
COPY = 1 << 20
MAP_FIXED, MAP_FIXED_NOREPLACE = 0x10, 0x100000
MADV_DONTNEED, MADV_POPULATE_WRITE, MADV_GUARD_INSTALL = 4, 23, 102
MLOCK_ONFAULT = 1
AT_PAGESZ = 6
PR_SET_MM, PR_SET_MM_MAP = 35, 14
PR_SET_VMA, PR_SET_VMA_ANON_NAME = 0x53564D41, 0
MAX_IOVECS, CHUNK = 1024, 1 << 30
STUB: Span = (0, 1 << 21)  # the first task's program
KEPT_FLAGS = vma.MAP_SHARED | vma.MAP_PRIVATE | vma.MAP_DROPPABLE | vma.MAP_ANONYMOUS | vma.MAP_GROWSDOWN
KEPT_FLAGS |= vma.MAP_NORESERVE


class AddressSpace:
    """What the images say of one task's memory."""

    def __init__(self, restore: "Restore", task: "RestoreTask") -> None:
        self.task = task
        name = kinds.MM.file_name(task.pid)
        mm = task.mm if task.mm is not None else restore.images.one(kinds.MM, task.pid)
        task.mm = self.mm = mm
        self._check_page_size()
        self.areas = layout.checked(name, mm, native().user_end)
        self.guards = [(area.start, area.end) for area in mm.vmas if area.status & vma.GUARD]
        self.pages = PageStore(restore.images, task.pid)
        extras = restore.images.find(kinds.TORPOR_TASK, task.pid)
        self.extras = extras
        self.accounted = set(extras.accounted) if extras else set()
        self._check_pages()
        self.with_pages = _touched(self.areas, [(r.vaddr, r.vaddr + r.nr_pages * PAGE) for r, _ in self.pages.pieces])
        self.protection: dict[int, int] = {}  # of private areas, by their starts: what it is for the moment

    def _check_page_size(self) -> None:
        """Images count in pages, but only the auxiliary vector says how large these are."""
        vector = self.mm.mm_saved_auxv
        size = dict(zip(vector[::2], vector[1::2], strict=False)).get(AT_PAGESZ, PAGE)
        if size != PAGE:
            raise self.task.refusal(
                f"it comes from a kernel with pages of {size} bytes, and this one's have {PAGE}",
                "restore it under a kernel with pages of that size", code="page-size",
            )  # fmt: skip

    def _check_pages(self) -> None:
        """Every stored page lies in a private area of the task's."""
        private = [area for area in self.areas if vma.is_private_memory(area) or area.status & vma.VDSO]
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
        text = [(area.start, area.end) for area in self.areas if area.status & vma.VDSO]
        stored = [
            cow.Run(run.vaddr, run.nr_pages * PAGE, level, run.offset)
            for run, level in self.pages.pieces
            if level is not None
        ]
        return cow.split(stored, text)[0]  # the pages beside the vDSO may be in a run with its own


class AddressSpaces:
    """The memory of a whole tree.  `hole`: where an executor can be in all tasks, from the stub to the end."""

    def __init__(self, restore: "Restore") -> None:
        self.restore = restore
        self.spaces: dict[int, AddressSpace] = {}
        self.writable: dict[int, int] = {}
        for task in restore.tasks.values():
            if not task.dead and restore.images.exists(kinds.MM, task.pid):
                self.spaces[task.pid] = AddressSpace(restore, task)
        for task in restore.tasks.values():
            if not task.dead and task.pid not in self.spaces and not self._shares(task):
                raise ImageError(f"{kinds.MM.file_name(task.pid)} is missing", code="missing-image")
        size = AREA_PAGE + LEADER_AREA * restore.state["executor areas"]
        self.hole = self._find_hole(size)
        executors = self.hole, self.hole + size
        self.vdso = vdso_place.Places(self.spaces, lambda size: self._find_hole(size, executors))
        segments.check(restore)

    def _find_hole(self, size: int, *more: Span) -> int:
        """A place that nothing uses: no area of the whole tree, nor what the first task begins with."""
        arch = native()
        spans = [(area.start, area.end) for space in self.spaces.values() for area in space.areas]
        return layout.find_hole(size, [*spans, STUB, arch.stub_layout, *more], arch.user_end)

    def _shares(self, task: "RestoreTask") -> bool:
        """Whether the task lives in another's address space (CLONE_VM)."""
        return any(
            other.ids is not None and task.ids is not None and other.ids.vm_id == task.ids.vm_id
            for pid in self.spaces
            if (other := self.restore.tasks[pid]) is not task
        )

    # -- before children are forked ---------------------------------------------------------------------------------
    def fill_before_fork(self, task: "RestoreTask") -> None:
        """Make the private areas what they were; the task's executor is up at `hole`."""
        space = self.spaces.get(task.pid)
        if space is None:
            return
        runner = _runner(task)
        parent = self.spaces.get(task.memory_from)
        inherits = parent is not None and runner.inherited
        if not inherits:
            self._clear(task, space)
            plan = layout.Inherited([], [], [area for area in space.areas if vma.is_private_memory(area)])
        else:
            assert parent is not None
            plan = layout.inherit(parent.areas, space.areas)
            self.vdso.place(task, task.memory_from)
        program = Program()
        for start, end in plan.drop:
            program.call("munmap", start, end - start)
        for old, new in plan.keep:
            if new.end < old.end:
                program.call("munmap", new.end, old.end - new.end)
        for old, new in plan.keep:
            if new.end > old.end:
                program.call("mremap", new.start, old.end - old.start, new.end - new.start, 0, 0)
            space.protection[new.start] = parent.protection[old.start] if parent is not None else -1
        runner.run(program)
        self._map(task, plan.create)
        self._account(task, space, plan.create)
        wanted = space.runs()
        drop: list[Span] = []
        if plan.keep:
            assert parent is not None
            wanted, drop = cow.differences(
                parent.runs(), wanted, [(new.start, min(old.end, new.end)) for old, new in plan.keep]
            )
        program = Program()
        # What is inherited may be protected against the writes to come; only where there are any, or neighbours merge.
        written = _touched([new for _, new in plan.keep], [(run.start, run.start + run.length) for run in wanted])
        for old, new in plan.keep:
            if not old.prot & PROT_WRITE and new.start in written and not _poked(new):
                program.call("mprotect", new.start, new.end - new.start, new.prot | PROT_WRITE)
                space.protection[new.start] = new.prot | PROT_WRITE
        for start, end in drop:
            program.call("madvise", start, end - start, MADV_DONTNEED)
        runner.run(program)
        poked = [(area.start, area.end) for area in space.areas if _poked(area)]
        inside, outside = cow.split(wanted, poked)
        self._read(task, inside)
        self._poke(task, outside)

    def _account(self, task: "RestoreTask", space: AddressSpace, areas: Sequence[VmaEntry]) -> None:
        """Let the kernel go on to account for anonymous memory that was writable once (guard pages of fibers, say): it
        does so, in mprotect, where a page was ever touched."""
        program = Program()
        for area in areas:
            if area.start in space.accounted and area.start not in space.with_pages and not _descriptor_id(area):
                program.call("madvise", area.start, PAGE, MADV_POPULATE_WRITE, may_fail=True)  # Linux 5.14
                program.call("madvise", area.start, PAGE, MADV_DONTNEED)
        _runner(task).run(program)

    def _poke(self, task: "RestoreTask", runs: Sequence[cow.Run]) -> None:
        """Write changed pages of program text from outside: to map it writable would leave traces (VM_ACCOUNT)."""
        assert task.tracee is not None
        for level, some in cow.by_level(runs):
            fd = level.open_pages()
            try:
                for run in some:
                    for at in range(0, run.length, COPY):
                        size = min(COPY, run.length - at)
                        task.tracee.write(run.start + at, os.pread(fd, size, run.offset + at))
            finally:
                os.close(fd)

    def _clear(self, task: "RestoreTask", space: AddressSpace) -> None:
        """Unmap everything that a fresh stub has, but the vDSO, which goes to its place."""
        self.vdso.place(task, 0)
        runner = _runner(task)
        keep = vdso_place.KINDS | {"vsyscall"}
        left = self.vdso.of.get(task.pid)
        program = Program()
        for area in read_maps(task.pid):
            ours = runner.base <= area.start < runner.base + runner.size
            ours = ours or (left is not None and left.is_left(area.start))
            if not ours and kind(area) not in keep:
                program.call("munmap", area.start, area.end - area.start)
        runner.run(program)

    def _map(self, task: "RestoreTask", areas: Sequence[VmaEntry]) -> None:
        """mmap areas at their addresses, files by descriptors sent to the task."""
        runner, space = _runner(task), self.spaces[task.pid]
        changing = space.with_pages | space.accounted  # areas that must be writable for the moment
        anonymous = Program()
        for span in _together(areas, changing):
            area = span[0]
            if area.status & vma.SYSVIPC:
                segments.fill_sysv(self.restore, area.shmid)
                sysv.attach(anonymous, area)
                continue
            prot = PROT_READ | PROT_WRITE if area.start in changing else area.prot
            flags = area.flags & KEPT_FLAGS | MAP_FIXED_NOREPLACE | vma.MAP_ANONYMOUS
            anonymous.call("mmap", area.start, span[-1].end - area.start, prot, flags, -1, 0)
            space.protection.update(dict.fromkeys([one.start for one in span], prot))
        runner.run(anonymous)
        needing = [area for area in areas if _descriptor_id(area)]
        changing -= {area.start for area in needing if _poked(area) and area.start not in space.accounted}
        for at in range(0, len(needing), SCM_MAX_FD):
            some = needing[at : at + SCM_MAX_FD]
            wanted = sorted({(_descriptor_id(area), _for_writing(area)) for area in some})
            program = Program()
            fds = [self._open(id, writing) for id, writing in wanted]
            numbers = runner.send_fds(program, fds)
            place = {key: Load32(numbers + 4 * i) for i, key in enumerate(wanted)}
            for area in some:
                prot = area.prot | (PROT_WRITE if vma.is_private_memory(area) and area.start in changing else 0)
                flags = area.flags & KEPT_FLAGS | MAP_FIXED_NOREPLACE
                fd = place[_descriptor_id(area), _for_writing(area)]
                program.call("mmap", area.start, area.end - area.start, prot, flags, fd, area.pgoff)
                space.protection[area.start] = prot
            for number in place.values():
                program.call("close", number)
            runner.run_with_fds(program, fds)

    def _open(self, id: int, writing: bool = False) -> int:
        """Our descriptor of a mapped file, kept for all tasks."""
        fd = self._make(id)
        if not writing or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            return fd
        # CRIU enters a file once, however it is mapped.
        if id not in self.writable:
            self.writable[id] = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        return self.writable[id]

    def _make(self, id: int) -> int:
        from torpor.resources import registry

        made = self.restore.made
        if id not in made:
            entry = self.restore.files.get(id)
            if entry is None:
                raise ImageError("files.img is incomplete", f"a mapped file has id {id}, which is not there")
            if entry.memfd is not None:  # always open for both: what a mapping may do is in its protection
                made[id] = os.dup(segments.open_segment(self.restore, entry.memfd.inode_id))
                return made[id]
            file_kind = registry.file_kind_of_type(entry.type)
            if file_kind is None:
                raise ImageError("files.img is mangled", f"file {id}, type {entry.type}, cannot be mapped")
            made[id] = file_kind.make(entry, self.restore)
        return made[id]

    def _read(self, task: "RestoreTask", runs: Sequence[cow.Run]) -> None:
        """Fill pages from the images, by preadv in the task."""
        runner = _runner(task)
        word = runner.arch.word
        for level, some in cow.by_level(runs):
            fd = level.open_pages()
            try:
                first = Program()
                numbers = runner.send_fds(first, [fd])
                remote = first.call("fcntl", Load32(numbers), 0, 0)  # F_DUPFD: its number as a result
                first.call("close", Load32(numbers))
                runner.run_with_fds(first, [fd])
                program = Program()
                for group in cow.groups(some, MAX_IOVECS, CHUNK):
                    vector = b"".join(struct.pack(f"{word[0]}2{word[1]}", run.start, run.length) for run in group)
                    offset = group[0].offset
                    total = sum(run.length for run in group)
                    result = program.call("preadv", remote.value, program.put(vector), len(group), offset)
                    runner.run(program)
                    if result.value != total:
                        raise ImageError(f"the pages of task {task.pid} cannot be read", "the image is too short")
                    program = Program()
                program.call("close", remote.value)
                runner.run(program)
            finally:
                os.close(fd)

    # -- when the whole tree exists -----------------------------------------------------------------------------------
    def finish(self, task: "RestoreTask") -> None:
        """Shared areas; final protections; what the kernel knows of the layout."""
        space = self.spaces.get(task.pid)
        if space is None:
            return
        runner = _runner(task)
        self._map(task, [area for area in space.areas if not vma.is_private_memory(area) and _mappable(area)])
        program = Program()
        for area in space.areas:
            if vma.is_private_memory(area) and space.protection[area.start] != area.prot:
                program.call("mprotect", area.start, area.end - area.start, area.prot)
        for area in space.areas:
            if area.madv:
                for advice in range(64):
                    if area.madv >> advice & 1:
                        program.call("madvise", area.start, area.end - area.start, advice)
        for start, end in space.guards:
            program.call("madvise", start, end - start, MADV_GUARD_INSTALL)
        on_fault = set(space.extras.lock_on_fault) if space.extras else set()
        for area in space.areas:
            if area.flags & vma.MAP_LOCKED:
                flags = MLOCK_ONFAULT if area.start in on_fault else 0
                program.call("mlock2", area.start, area.end - area.start, flags)
        if space.extras:
            ends = {area.start: area.end for area in space.areas}
            for name in space.extras.names:
                if name.start in ends:
                    text = program.string(name.name)
                    program.call(
                        "prctl", PR_SET_VMA, PR_SET_VMA_ANON_NAME, name.start, ends[name.start] - name.start, text
                    )
        if space.extras:
            sealed = set(space.extras.sealed)  # the last change that they allow (mseal, Linux 6.10)
            for area in space.areas:
                if area.start in sealed:
                    program.call("mseal", area.start, area.end - area.start, 0)
        if space.extras and space.extras.lock_future:
            wanted = space.extras.lock_future & (runner.arch.mcl_future | runner.arch.mcl_onfault)
            program.call("mlockall", wanted)
        runner.run(program)
        self._set_layout(task, space)

    def _set_layout(self, task: "RestoreTask", space: AddressSpace) -> None:
        """prctl(PR_SET_MM_MAP): struct prctl_mm_map of linux/prctl.h; also the executable's link."""
        mm, runner = space.mm, _runner(task)
        word = runner.arch.word
        order, code = word[0], word[1]
        auxv = struct.pack(f"{order}{len(mm.mm_saved_auxv)}{code}", *mm.mm_saved_auxv)
        fields = (
            mm.mm_start_code, mm.mm_end_code, mm.mm_start_data, mm.mm_end_data, mm.mm_start_brk, mm.mm_brk,
            mm.mm_start_stack, mm.mm_arg_start, mm.mm_arg_end, mm.mm_env_start, mm.mm_env_end,
        )  # fmt: skip
        fd = self._open(mm.exe_file_id)
        first = Program()
        numbers = runner.send_fds(first, [fd])
        remote = first.call("fcntl", Load32(numbers), 0, 0)
        first.call("close", Load32(numbers))
        runner.run_with_fds(first, [fd])
        program = Program()
        vector = program.put(auxv)
        pointer = 8 * len(fields)
        packed = struct.pack(f"{order}11Q", *fields) + bytes(runner.arch.word_size)
        packed += struct.pack(f"{order}II", len(auxv), remote.value)
        layout_ = program.put(packed.ljust(104, b"\0"), [(pointer, vector)])
        program.call("prctl", PR_SET_MM, PR_SET_MM_MAP, layout_, len(layout_), 0)
        program.call("close", remote.value)
        runner.run(program)


def _runner(task: "RestoreTask") -> Executor:
    assert task.runner is not None
    return task.runner


def _descriptor_id(area: VmaEntry) -> int:
    """The id in files.img of what is mapped; 0: anonymous."""
    if area.status & (vma.FILE_PRIVATE | vma.FILE_SHARED):
        return area.shmid
    return 0


def _poked(area: VmaEntry) -> bool:
    """Whether changed pages are written through /proc/PID/mem: program text with a debugger's breakpoint, say."""
    return bool(area.status & vma.FILE_PRIVATE) and area.prot & PROT_EXEC != 0 and not area.prot & PROT_WRITE


def _for_writing(area: VmaEntry) -> bool:
    return bool(area.flags & vma.MAP_SHARED) and (bool(area.prot & PROT_WRITE) or (area.fdflags or 0) & 3 == os.O_RDWR)


def _mappable(area: VmaEntry) -> bool:
    return not area.status & (vma.VDSO | vma.VVAR | vma.VSYSCALL)


def _together(areas: Sequence[VmaEntry], changing: "set[int]") -> list[list[VmaEntry]]:
    """Anonymous areas, each alone or with its neighbours: those that are to be writable for the moment are one area of
    the kernel's then, however they are mapped, and one call makes it."""
    spans: list[list[VmaEntry]] = []
    last: VmaEntry | None = None
    for area in areas:
        if _descriptor_id(area):
            continue
        if (
            last is not None
            and last.end == area.start
            and last.flags & KEPT_FLAGS == area.flags & KEPT_FLAGS
            and not area.flags & (vma.MAP_GROWSDOWN | vma.MAP_SHARED)
            and area.start in changing
            and last.start in changing
        ):
            spans[-1].append(area)
        else:
            spans.append([area])
        last = area
    return spans


def _touched(areas: Sequence[VmaEntry], filled: Sequence[Span]) -> set[int]:
    """Starts of the areas in which pages are stored; both sorted."""
    found: set[int] = set()
    at = 0
    for area in areas:
        while at < len(filled) and filled[at][1] <= area.start:
            at += 1
        if at < len(filled) and filled[at][0] < area.end:
            found.add(area.start)
    return found
