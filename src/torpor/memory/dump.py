# SPDX-License-Identifier: Apache-2.0
"""Dumping address spaces: what they are, and which of their pages go into the images (how: `torpor.memory.writing`).

Shared segments (shared anonymous memory, memfds, SysV) are stored once, by inode, straight from their tmpfs file.
"""

import os
import struct

from torpor.engine.executor import Executor
from torpor.engine.program import Program
from torpor.images.schema.mm import MmEntry
from torpor.kernel import pagemap
from torpor.kernel.maps import MAP_SHARED, Area, kind, parse_vm_flags, vm_flags_of
from torpor.kernel.proc import INFINITY, parse_stat
from torpor.kernel.procfs import LARGE, read_all, read_link
from torpor.memory import areas as vma
from torpor.memory import segments
from torpor.memory.entries import describe
from torpor.memory.writing import PageWriter
from torpor.resources import regular
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.directory import ImageWriter
    from torpor.images.schema.torpor import TagRunEntry
    from torpor.resources.context import Dump, DumpTask

PR_GET_DUMPABLE, PR_GET_THP_DISABLE = 3, 42
O_RDONLY, O_RDWR = os.O_RDONLY, os.O_RDWR
PROT_READ, PROT_WRITE = 1, 2


_last: tuple[bytes, dict[int, frozenset[str]]] = b"", {}  # smaps and its flags: a forked task's is often the same


class AddressSpace:
    """One task's memory at dump."""

    def __init__(self, task: "DumpTask") -> None:
        self.task = task
        self.kinds = _kinds(task.areas)
        self._smaps = b""  # as read
        self._asked = 0  # an offset in it
        self._flags: dict[int, frozenset[str]] = {}
        self.behind: dict[int, tuple[int, int]] = {}  # shmid and fdflags of areas with a file or a segment
        self.runs: list[tuple[int, int, bool]] = []
        self.guards: list[tuple[int, int]] = []
        self.names: dict[int, str] = {}
        self.lock_future = 0  # MCL_* flags of mlockall(2)
        self.sealed: list[int] = []  # starts of areas under mseal
        self.guarded: list[int] = []  # starts of areas into which jumps are guarded (PROT_BTI of aarch64)
        self.tagged: list[int] = []  # starts of areas with PROT_MTE (aarch64)
        self.tags: list[tuple[int, bytes, bool]] = []  # memory/tags.py
        self.lock_on_fault: list[int] = []
        self.accounted: list[int] = []  # starts of private areas that were writable once
        self.writer: PageWriter | None = None

    def look(self, dump: "Dump") -> None:
        """Frozen: read what will be another when the task goes on; enter the files of its areas.  Raises Refusal."""
        task = self.task
        # A leader that has ended while other threads live has no memory any more.
        self.stat = task.stat if task.leader.tid == task.pid else parse_stat(read_all(f"/proc/{task.leader.tid}/stat"))
        self.auxv = read_all(f"/proc/{task.leader.tid}/auxv")
        exe = f"/proc/{task.leader.tid}/exe"
        where = f"{task.subject}, its executable"
        self.exe_file_id = regular.save_path(dump, where, read_link(where, exe), exe, O_RDONLY)
        self._smaps = read_all(f"/proc/{task.leader.tid}/smaps", LARGE)
        self.runner_base = task.runner.base if isinstance(task.runner, Executor) else -1
        for area, what in zip(task.areas, self.kinds, strict=True):
            if what == "file":
                self.behind[area.start] = self._enter_file(dump, area)
            elif what in ("shmem", "memfd", "sysv"):
                writable = not area.shared or self._may_be_written(area)
                self.behind[area.start] = segments.enter(dump, task, area, what, writable)

    def _may_be_written(self, area: Area) -> bool:
        """Whether it can be, or mprotect(2) may allow it.  To be asked in the order of areas, while frozen: of smaps no
        more is taken apart than that."""
        if area.prot & PROT_WRITE:
            return True
        flags, self._asked = vm_flags_of(self._smaps, area.start, self._asked)
        return "mw" in flags

    @property
    def flags(self) -> dict[int, frozenset[str]]:
        """VmFlags by an area's start; taken apart when they are asked for, which for most tasks is after the thaw."""
        global _last
        if self._smaps and self._smaps == _last[0]:
            self._flags = _last[1]
        elif self._smaps:
            self._flags = parse_vm_flags(self._smaps)
            if any(vma.UNNAMED in flags for flags in set(self._flags.values())):
                self._flags = vma.with_names(self._flags)
            if len(self._smaps) < LARGE:
                _last = self._smaps, self._flags
        self._smaps = b""
        return self._flags

    def ask(self, program: Program) -> None:
        """Append what only the task can tell of its address space."""
        self.dumpable = program.call("prctl", PR_GET_DUMPABLE)
        self.thp_disabled = program.call("prctl", PR_GET_THP_DISABLE, 0, 0, 0, 0, may_fail=True)
        self.brk = program.call("brk", 0)

    def entry(self, dump: "Dump") -> MmEntry:
        """After the thaw: mm-PID.img.  Raises Refusal."""
        stat = self.stat
        word = self.task.leader.arch.word
        return MmEntry(
            mm_start_code=stat.startcode,
            mm_end_code=stat.endcode,
            mm_start_data=stat.start_data,
            mm_end_data=stat.end_data,
            mm_start_stack=stat.startstack,
            mm_start_brk=stat.start_brk,
            mm_brk=self.brk.value,
            mm_arg_start=stat.arg_start,
            mm_arg_end=stat.arg_end,
            mm_env_start=stat.env_start,
            mm_env_end=stat.env_end,
            exe_file_id=self.exe_file_id,
            mm_saved_auxv=_auxv(self.auxv, word),
            vmas=describe(self, dump.setdefault("memory:sorts", {})),
            dumpable=self.dumpable.value,
            thp_disabled=bool(self.thp_disabled.value > 0) or None,
        )

    def _enter_file(self, dump: "Dump", area: Area) -> tuple[int, int]:
        """Its number in files.img, and how it is to be opened."""
        task = self.task
        # A shared mapping that may become writable tells that its file was opened for writing.
        access = O_RDWR if area.shared and self._may_be_written(area) else O_RDONLY
        path = f"/proc/{task.leader.tid}/map_files/{area.start:x}-{area.end:x}"
        subject = f"{task.subject}, area {area.start:#x}-{area.end:#x}"
        # maps says by itself that two areas are of one file: most need no look at it.
        known: dict[tuple[tuple[int, int], int, str, int], int] = dump.setdefault("memory:files", {})
        key = (area.dev, area.inode, area.path, access)
        if key not in known:
            known[key] = regular.save_path(dump, subject, area.path, path, access)
        return known[key], access

    def scan(self, merged: bool) -> None:
        """Frozen: find the pages to store.  `merged`: KSM may have put the zero page in the place of others."""
        private: list[Area] = []
        others: list[Area] = []
        for area, what in zip(self.task.areas, self.kinds, strict=True):
            (others if area.flags == MAP_SHARED or what in vma.KERNEL_KINDS else private).append(area)
        fd = pagemap.open_pagemap(self.task.leader.tid)
        try:
            runs = pagemap.scan_all(fd, private, others, guards=self.guards)
            for area, found in zip(private, runs, strict=True) if merged else ():
                if area.has_file:
                    found[:] = sorted(found + pagemap.zero_runs(fd, area.start, area.end))
            for area in others:
                if area.shared:  # guard pages in file mappings: Linux 6.15
                    self.guards += pagemap.guard_runs(fd, area.start, area.end)
        finally:
            os.close(fd)
        # The vDSO's text goes with it: whoever restores compares it with that of his kernel.
        vdso = [(area, [(area.start, area.end)]) for area in others if kind(area) == "vdso"]
        self.runs = [
            (start, end, bool(area.prot & PROT_READ))
            for area, found in sorted([*zip(private, runs, strict=True), *vdso])
            for start, end in found
        ]

    def leave_to_engine(self, spans: "list[tuple[int, int]]") -> None:
        """After `scan`: these areas (sorted) cannot be written by the task itself."""
        left = iter([*spans, (INFINITY, INFINITY)])
        start, end = next(left)
        for at, run in enumerate(self.runs):
            while run[0] >= end:
                start, end = next(left)
            if run[0] >= start:
                self.runs[at] = (run[0], run[1], False)

    @property
    def bytes(self) -> int:
        """Of pages that are stored."""
        return self.writer.bytes if self.writer is not None else 0

    def write(self, dump: "Dump", pages_id: int) -> PageWriter:
        """Frozen: set the task to write its pages.  What is returned is to be joined."""
        self.writer = PageWriter(dump.images, self.task, pages_id, self.runs)
        self.writer.start()
        return self.writer

    def forget_droppable(self) -> None:
        """After the thaw, before the disk has anything: what a program had in droppable memory (of which the vDSO's
        getrandom makes its numbers) is in no image.  That an area is droppable only smaps says, which is read while
        pages are being written: so zeros take their place.  They mean there that the kernel has dropped the page."""
        flags = self.flags
        spans = [(area.start, area.end) for area in self.task.areas if "dp" in flags.get(area.start, ())]
        if spans and self.writer is not None:
            self.writer.pagemap.blank(spans)

    def save_tags(self, images: "ImageWriter") -> "list[TagRunEntry]":
        """After the thaw: memory tags."""
        if not self.tags:
            return []
        from torpor.memory import tags

        return tags.save(images, self)


def _kinds(areas: list[Area]) -> list[str]:
    """The kind of each: it depends on what is mapped there, and ten thousand areas are of few things."""
    known: dict[tuple[object, ...], str] = {}
    kinds = []
    for area in areas:
        behind = area[5:]  # device, inode, path
        what = known.get(behind)
        if what is None:
            what = known[behind] = kind(area)
        kinds.append(what)
    return kinds


def _auxv(data: bytes, word: str) -> list[int]:
    """Without AT_NULL at the end: CRIU takes 44 words at most, which x86_64 fills without it."""
    words = list(struct.unpack(f"{word[0]}{len(data) // struct.calcsize(word)}{word[1]}", data))
    while words[-2:] == [0, 0]:
        del words[-2:]
    return words
