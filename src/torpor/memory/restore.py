# SPDX-License-Identifier: Apache-2.0
"""Restoring address spaces, in one walk from the root.

A task's private areas are put at their final addresses and filled *before* its children are forked, so that pages that
a parent shared with its children are shared again.  A child keeps what it inherits, compares it with its own image, and
reads only the pages that differ.  Shared and file areas, advice, locks and the kernel's notion of the layout (brk,
arguments, auxiliary vector) come when the whole tree exists.
"""

import errno
import fcntl
import os
import struct
from bisect import bisect_right

from torpor.arch import native
from torpor.engine.executor import SCM_MAX_FD
from torpor.engine.program import Load32, Program, Result
from torpor.errors import ImageError, KernelError
from torpor.images import kinds
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.schema.vma import VmaEntry
from torpor.kernel.maps import kind, read_maps, read_vm_flags
from torpor.memory import areas as vma
from torpor.memory import cow, fill, layout, segments, sysv, tags, vdso_place
from torpor.memory.layout import Span
from torpor.memory.space import (
    MADV_GUARD_INSTALL,
    PR_SET_VMA,
    PR_SET_VMA_ANON_NAME,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    AddressSpace,
    descriptor_id,
    for_writing,
    is_poked,
    is_shared_memory,
    together,
    touched,
)
from torpor.typed import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from torpor.engine.together import Work
    from torpor.resources.context import Restore, RestoreTask

STUB: Span = (0, 1 << 21)  # the first task's program
MAP_FIXED_NOREPLACE = 0x100000
MADV_DONTNEED, MADV_POPULATE_WRITE = 4, 23
MLOCK_ONFAULT = 1
PROT_BTI = 0x10
PR_SET_MM, PR_SET_MM_MAP = 35, 14
PR_SET_THP_DISABLE = 41


class AddressSpaces:
    """The memory of a whole tree.  `hole`: where an executor can be in all tasks, from the stub to the end;
    `short_stack`: the stub's stack must not be allowed much, or that is where the kernel puts something."""

    def __init__(self, restore: "Restore") -> None:
        self.restore = restore
        self.spaces: dict[int, AddressSpace] = {}
        self.writable: dict[int, int] = {}
        self.readable: dict[int, int] = {}
        for task in restore.tasks.values():
            if not task.dead and restore.images.exists(kinds.MM, task.pid):
                self.spaces[task.pid] = AddressSpace(restore, task)
        shared = {ids.vm_id for pid in self.spaces if (ids := restore.tasks[pid].ids) is not None}
        for task in restore.tasks.values():  # those that have none live in another's (CLONE_VM)
            if task.dead or task.pid in self.spaces:
                continue
            if task.ids is None or task.ids.vm_id not in shared:
                raise ImageError(f"{kinds.MM.file_name(task.pid)} is missing", code="missing-image")
        spans = [(area.start, area.end) for space in self.spaces.values() for area in space.areas]
        size = layout.executors_size(restore.state["executor areas"])
        stub, self.short_stack = layout.around_stub(size, spans, native())
        self._occupied = [*spans, STUB, *stub]
        self.hole = self._find_hole(size)
        self.executors = self.hole, self.hole + size
        self.vdso = vdso_place.Places(self.spaces, lambda size, *more: self._find_hole(size, self.executors, *more))
        segments.check(restore)

    def _find_hole(self, size: int, *more: Span) -> int:
        """A place that nothing uses: no area of the whole tree, nor what the first task begins with."""
        return layout.find_hole(size, [*self._occupied, *more], native().user_end)

    def _find_hole_in(self, space: AddressSpace, size: int) -> int:
        """A place that one task does not use, when all of it is there."""
        own = ((area.start, area.end) for area in space.areas)
        return layout.find_hole(size, [*own, self.executors, self.vdso.spare], native().user_end)

    def bytes_stored(self) -> int:
        """Of private memory; what a child shares with its parent counts for both."""
        return sum(run.length for space in self.spaces.values() for run in space.runs())

    # -- before children are forked ---------------------------------------------------------------------------------
    def fill_before_fork(self, task: "RestoreTask") -> "Work":
        """Make the private areas what they were; the task's executor is up at `hole`."""
        space = self.spaces.get(task.pid)
        if space is None:
            return
        runner = task.executor
        parent = self.spaces.get(task.memory_from)
        inherits = parent is not None and runner.inherited
        program = Program()
        if parent is not None and inherits:
            accounted = parent.once_writable, space.once_writable
            plan = layout.inherit(parent.areas, space.areas, accounted, space.with_pages)
            self._drop(program, plan)  # first: the kernel's own areas may lie where the parent has something else
            program = self.vdso.place(task, program, task.memory_from)
            self._keep(program, plan, space, parent)
        else:
            program = self.vdso.place(task, program)
            plan = layout.Inherited([], [], space.private)
            self._clear(program, task)
            # Where huge pages are the system's habit, each page that is stored would come with 511 that nobody has
            # touched.  Children inherit the switch; `finish` puts it back.
            program.call("prctl", PR_SET_THP_DISABLE, 1, 0, 0, 0)
        self._map(program, task, plan.create)
        self._account(program, space, plan.create)
        own = wanted = space.runs()
        compared = 0
        if plan.keep:
            assert parent is not None
            wanted, compared = self._share(program, space, parent, plan)
        self._count(own, wanted, compared)
        inside, outside = cow.split(wanted, [(area.start, area.end) for area in space.areas if is_poked(area)])
        large = sum(run.length for run in inside) >= fill.LARGE
        opened: list[int] = []
        try:
            reads = [] if large else fill.append_reads(program, runner, inside, opened)
            yield program
            fill.check_reads(task.pid, reads)
        finally:
            for fd in opened:
                os.close(fd)
        if large:
            fill.read_large(task.pid, runner, inside)
        if outside:
            assert task.tracee is not None
            fill.poke(task.tracee, outside)
        if space.tags.runs or (inherits and parent is not None and parent.tags.runs):
            self._put_tags(task, space, parent if inherits else None, [new for _, new in plan.keep])

    def _put_tags(
        self, task: "RestoreTask", space: AddressSpace, parent: AddressSpace | None, kept: Sequence[VmaEntry]
    ) -> None:
        """Memory tags of private areas; the task's executor waits."""
        assert task.tracee is not None
        tags.put(task.tracee, tags.private(space) if parent is None else tags.differences(space, parent, kept))

    def _clear(self, program: Program, task: "RestoreTask") -> None:
        """Append that everything goes which a fresh stub has, but the kernel's own areas."""
        runner = task.executor
        keep = vma.KERNEL_KINDS
        left = self.vdso.of.get(task.pid)
        for area in read_maps(task.pid):
            ours = runner.base <= area.start < runner.base + runner.size
            ours = ours or (left is not None and left.is_left(area.start))
            if not ours and kind(area) not in keep:
                program.call("munmap", area.start, area.end - area.start)

    def _drop(self, program: Program, plan: layout.Inherited) -> None:
        """Append that what a child does not have of its parent goes."""
        for start, end in plan.drop:
            program.call("munmap", start, end - start)
        for old, new in plan.keep:
            if new.end < old.end:
                program.call("munmap", new.end, old.end - new.end)

    def _keep(self, program: Program, plan: layout.Inherited, space: AddressSpace, parent: AddressSpace) -> None:
        """Append what makes the areas that a child has of its parent its own."""
        for old, new in plan.keep:
            if new.end > old.end:
                program.call("mremap", new.start, old.end - old.start, new.end - new.start, 0, 0)
            space.protection[new.start] = parent.protection[old.start]

    def _share(
        self, program: Program, space: AddressSpace, parent: AddressSpace, plan: layout.Inherited
    ) -> tuple[list[cow.Run], int]:
        """The pages that a child has to read: those that differ from its parent's, of how many bytes that were
        compared.  Makes room for them."""
        spans = [(new.start, min(old.end, new.end)) for old, new in plan.keep]
        wanted, drop, compared = cow.differences(parent.runs(), space.runs(), spans)
        # What is inherited may be protected against the writes to come; only where there are any, or neighbours merge.
        written = touched([new for _, new in plan.keep], [(run.start, run.start + run.length) for run in wanted])
        for _, new in plan.keep:
            now = space.protection[new.start]
            if new.start in written and not is_poked(new) and now & (PROT_WRITE | PROT_EXEC) != PROT_WRITE:
                prot = layout.while_filled(new.prot)
                program.call("mprotect", new.start, new.end - new.start, prot)
                space.protection[new.start] = prot
        for start, end in drop:
            program.call("madvise", start, end - start, MADV_DONTNEED)
        return wanted, compared

    def _count(self, own: Sequence[cow.Run], wanted: Sequence[cow.Run], compared: int) -> None:
        """For stats-restore: pages read, and pages compared with a parent's, of which some are left as they are."""
        read = sum(run.length for run in wanted)
        skipped = sum(run.length for run in own) - read
        for name, size in (("restored", read), ("compared", compared), ("skipped", skipped)):
            key = f"pages {name}"
            self.restore.state[key] = self.restore.state.get(key, 0) + size // PAGE

    def _account(self, program: Program, space: AddressSpace, areas: Sequence[VmaEntry]) -> None:
        """Let the kernel go on to account for anonymous memory that was writable once (guard pages of fibers, say): it
        does so, in mprotect, where a page was ever touched."""
        if not space.accounted:
            return
        for area in areas:
            if area.start in space.accounted and area.start not in space.with_pages and not descriptor_id(area):
                program.call("madvise", area.start, PAGE, MADV_POPULATE_WRITE, may_fail=True)  # Linux 5.14
                program.call("madvise", area.start, PAGE, MADV_DONTNEED)

    def _map(self, program: Program, task: "RestoreTask", areas: Sequence[VmaEntry]) -> None:
        """Append the mappings of areas at their addresses, files by descriptors sent to the task."""
        space = self.spaces[task.pid]
        changing = space.with_pages | space.accounted  # areas that must be writable for the moment
        for span in together(areas, changing):
            area = span[0]
            if area.status & vma.SYSVIPC:
                segments.fill_sysv(self.restore, area.shmid)
                sysv.attach(program, area, lambda size: self._find_hole_in(space, size))
                continue
            prot = PROT_READ | PROT_WRITE | area.prot & layout.PROT_MTE if area.start in changing else area.prot
            flags = area.flags & vma.KEPT_FLAGS | MAP_FIXED_NOREPLACE | vma.MAP_ANONYMOUS
            program.call("mmap", area.start, span[-1].end - area.start, prot, flags, -1, 0)
            for one in span:
                space.protection[one.start] = prot
        needing = [area for area in areas if descriptor_id(area)]
        changing -= {area.start for area in needing if is_poked(area) and area.start not in space.accounted}
        for at in range(0, len(needing), SCM_MAX_FD):
            self._map_files(program, task, needing[at : at + SCM_MAX_FD], changing)

    def _map_files(
        self, program: Program, task: "RestoreTask", areas: Sequence[VmaEntry], changing: "set[int]"
    ) -> None:
        runner, space = task.executor, self.spaces[task.pid]
        wanted = sorted({(descriptor_id(area), for_writing(area)) for area in areas})
        numbers = runner.send_fds(program, [self._open(id, writing) for id, writing in wanted])
        place = {key: Load32(numbers + 4 * i) for i, key in enumerate(wanted)}
        for area in areas:
            filled = vma.is_private_memory(area) and area.start in changing
            prot = layout.while_filled(area.prot) if filled else area.prot
            flags = area.flags & vma.KEPT_FLAGS | MAP_FIXED_NOREPLACE
            fd = place[descriptor_id(area), for_writing(area)]
            program.call("mmap", area.start, area.end - area.start, prot, flags, fd, area.pgoff)
            space.protection[area.start] = prot
        for number in place.values():
            program.call("close", number)

    def _open(self, id: int, writing: bool = False) -> int:
        """Our descriptor of a mapped file, kept for all tasks."""
        fd = self._make(id)
        entry = self.restore.files.get(id)
        if entry is not None and entry.memfd is not None and segments.only_read(self.restore, entry.memfd, writing):
            if id not in self.readable:
                self.readable[id] = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            return self.readable[id]
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
            if entry.memfd is not None:
                return segments.open_segment(self.restore, entry.memfd.inode_id)
            file_kind = registry.file_kind_of_type(entry.type)
            if file_kind is None:
                raise ImageError("files.img is mangled", f"file {id}, type {entry.type}, cannot be mapped")
            made[id] = file_kind.make(entry, self.restore)
        return made[id]

    # -- when the whole tree exists -----------------------------------------------------------------------------------
    def finish(self, task: "RestoreTask") -> "Work":
        """Shared areas; final protections; what the kernel knows of the layout."""
        space = self.spaces.get(task.pid)
        if space is None:
            return
        program = Program()
        # Before areas ask for huge pages: with the switch on, khugepaged would not be told so (hugepage_madvise).
        program.call("prctl", PR_SET_THP_DISABLE, 0, 0, 0, 0)
        without_vdso = self.vdso.drop(task, program)
        self._map(program, task, [area for area in space.areas if is_shared_memory(area)])
        if space.tags.runs:
            tagged, stored = tags.shared(space)
            for area in tagged:
                if not area.prot & PROT_WRITE:
                    program.call("mprotect", area.start, area.end - area.start, area.prot | PROT_READ | PROT_WRITE)
            yield program
            assert task.tracee is not None
            tags.put(task.tracee, stored)
            program = Program()
            for area in tagged:
                if not area.prot & PROT_WRITE:
                    program.call("mprotect", area.start, area.end - area.start, area.prot)
        for area in space.private:
            if space.protection[area.start] != area.prot:
                program.call("mprotect", area.start, area.end - area.start, area.prot)
        guarded = set(space.extras.guarded) if space.extras else set()
        for area in space.areas:
            if area.start in guarded:  # a CPU or kernel without BTI refuses, and has no use for it
                prot = area.prot | PROT_BTI
                program.call("mprotect", area.start, area.end - area.start, prot, may_fail=True)
        for area in space.areas:
            if area.madv:
                for advice in range(64):
                    if area.madv >> advice & 1:
                        program.call("madvise", area.start, area.end - area.start, advice)
        for start, end in space.guards:
            program.call("madvise", start, end - start, MADV_GUARD_INSTALL)
        on_fault = set(space.extras.lock_on_fault) if space.extras else set()
        locked: dict[int, Result] = {}
        for area in space.areas:
            if area.flags & vma.MAP_LOCKED:
                flags = MLOCK_ONFAULT if area.start in on_fault else 0
                size = area.end - area.start
                locked[area.start] = program.call("mlock2", area.start, size, flags, may_fail=True)
        if space.extras and space.extras.names:
            ends = {area.start: area.end for area in space.areas}
            for name in space.extras.names:
                if name.start in ends:
                    text = program.string(name.name)
                    program.call(
                        "prctl", PR_SET_VMA, PR_SET_VMA_ANON_NAME, name.start, ends[name.start] - name.start, text
                    )
        if space.extras and space.extras.sealed:
            sealed = set(space.extras.sealed)  # the last change that they allow (mseal, Linux 6.10)
            for area in space.areas:
                if area.start in sealed:
                    program.call("mseal", area.start, area.end - area.start, 0)
        if space.extras and space.extras.lock_future:
            arch = native()
            program.call("mlockall", space.extras.lock_future & (arch.mcl_future | arch.mcl_onfault))
        remote = self._append_executable(program, task, space)
        yield program
        if any(result.value for result in locked.values()):
            self._check_locked(task, locked)
        program = Program()
        self._append_layout(program, task, space, remote.value)
        yield program
        if without_vdso and task.tracee is not None:
            task.tracee.use_gadget(0)  # it was in the vDSO

    def _check_locked(self, task: "RestoreTask", locked: "dict[int, Result]") -> None:
        """ENOMEM of mlock2 may mean that the memory is locked, but has places without pages to fetch: guard pages, what
        is beyond a file's end, what nobody may access.  mlockall(2) does not mention that."""
        assert task.tracee is not None
        flags = read_vm_flags(task.tracee.tid)
        starts = sorted(flags)
        for start, result in locked.items():
            at = starts[bisect_right(starts, start) - 1]  # neighbours that are alike have become one area
            if result.value and (result.value != -errno.ENOMEM or "lo" not in flags[at]):
                what = f"cannot lock the memory of task {task.pid} at {start:#x}"
                raise KernelError(what, -result.value, "raise the limit (prlimit --memlock)")

    def _append_executable(self, program: Program, task: "RestoreTask", space: AddressSpace) -> Result:
        """Let the task have a descriptor of what it executes; its number is needed inside of a structure."""
        numbers = task.executor.send_fds(program, [self._open(space.mm.exe_file_id)])
        remote = program.call("fcntl", Load32(numbers), 0, 0)  # F_DUPFD: a number that is a result
        program.call("close", Load32(numbers))
        return remote

    def _append_layout(self, program: Program, task: "RestoreTask", space: AddressSpace, executable: int) -> None:
        """prctl(PR_SET_MM_MAP): struct prctl_mm_map of linux/prctl.h; also the executable's link."""
        mm, runner = space.mm, task.executor
        word = runner.arch.word
        order, code = word[0], word[1]
        auxv = struct.pack(f"{order}{len(mm.mm_saved_auxv)}{code}", *mm.mm_saved_auxv)
        fields = (
            mm.mm_start_code, mm.mm_end_code, mm.mm_start_data, mm.mm_end_data, mm.mm_start_brk, mm.mm_brk,
            mm.mm_start_stack, mm.mm_arg_start, mm.mm_arg_end, mm.mm_env_start, mm.mm_env_end,
        )  # fmt: skip
        vector = program.put(auxv)
        pointer = 8 * len(fields)
        packed = struct.pack(f"{order}11Q", *fields) + bytes(runner.arch.word_size)
        packed += struct.pack(f"{order}II", len(auxv), executable)
        layout_ = program.put(packed.ljust(104, b"\0"), [(pointer, vector)])
        program.call("prctl", PR_SET_MM, PR_SET_MM_MAP, layout_, len(layout_), 0)
        program.call("close", executable)
