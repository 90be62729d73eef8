# SPDX-License-Identifier: Apache-2.0
"""Dumping address spaces: which pages, and how they get into the images.

The task writes its own pages: one pwritev(2) inside it moves up to 1,024 runs from its memory to the page cache in a
single copy (5.4 GB/s; going through pipes makes 1.3).  What the task cannot read itself (PROT_NONE, protection keys),
or may not write (RLIMIT_FSIZE), the controller copies through /proc/PID/mem.

Shared segments (shared anonymous memory, memfds, SysV) are stored once, by inode, straight from their tmpfs file.
"""

import os
import struct
from resource import RLIMIT_FSIZE

from torpor.engine.executor import Executor
from torpor.engine.program import Batch, Load32, Program, Result
from torpor.errors import DumpFailed
from torpor.images.kinds import PAGEMAP, PAGES
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.pages import PagemapWriter
from torpor.images.schema.mm import MmEntry
from torpor.kernel import pagemap
from torpor.kernel.maps import MAP_SHARED, Area, kind, parse_vm_flags
from torpor.kernel.proc import INFINITY, parse_stat
from torpor.kernel.procfs import LARGE, read_all
from torpor.memory import areas as vma
from torpor.memory import segments
from torpor.memory.entries import describe
from torpor.resources import regular
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.images.directory import ImageWriter
    from torpor.images.schema.torpor import TagRunEntry
    from torpor.resources.context import Dump, DumpTask

MAX_IOVECS = 1024  # UIO_MAXIOV
CHUNK = 1 << 28  # bytes of one write: a safe point in between, and far below 2 GiB
COPY = 1 << 20
# Bytes of one write in the task to an image that was not prepared.  ext4 takes page cache in folios as large as the
# write, 2 MB at most, and where a virtual machine gives free memory back to its host (free page reporting), just blocks
# of 2 MB are what it has given: a GB then took 0.23 to 2.1 s.  By 256 KB it takes 0.25 to 0.35 s, always; by 64 KB
# 0.33 s; by 4 KB 1 s.
AT_ONCE = 1 << 18
ZEROS = 1 << 14  # bytes of them that we have: each page of these costs a page fault, too
ZEROS_AT_ONCE = 64  # times these in one write
LEAST = 1 << 26  # bytes of images that are prepared in any case
F_DUPFD_CLOEXEC = 1030
PR_GET_DUMPABLE, PR_GET_THP_DISABLE = 3, 42
O_RDONLY, O_RDWR = os.O_RDONLY, os.O_RDWR
PROT_READ = 1


def prepare(images: "ImageWriter", tasks: "list[DumpTask]") -> None:
    """Before the freeze: make the pages images of these tasks, and fill them with zeros for as many pages as they have.

    What the tasks then write goes to pages of the page cache that are there: no file has to be made while they stand
    still (0.3 ms), nothing to be allocated, and what is charged for the cache is Torpor, not the tasks' memory cgroup.
    A GB is written in 0.14 s then, not 0.25.  And memory that a virtual machine has not got from its host yet (free
    page reporting gives back what lies idle for two seconds) comes at 3 ms a MB: a GB took up to 2 s.  The price is a
    quarter of a second a GB before the freeze.  Filling ends before the kernel would bring the zeros to the disk.
    """
    zeros = memoryview(bytes(ZEROS))
    left = _before_writeback()
    for number, task in enumerate(tasks, 1):
        size, at = _anonymous(task), 0
        fd = images.prepare_raw(PAGES, number)
        try:
            while at < size and left > 0:
                some = [zeros] * min(ZEROS_AT_ONCE, (size - at) // ZEROS) or [zeros[: size - at]]
                done = os.pwritev(fd, some, at)
                at, left = at + done, left - done
        finally:
            os.close(fd)


def _before_writeback() -> int:
    """Half of the bytes of files that may wait in memory before the kernel begins to write them out (/proc/vmstat)."""
    pages = {b"nr_dirty": 0, b"nr_dirty_background_threshold": 0}
    for line in read_all("/proc/vmstat").splitlines():
        name, _, number = line.partition(b" ")
        if name in pages:
            pages[name] = int(number)
    dirty, threshold = pages.values()
    return max(LEAST, (threshold // 2 - dirty) * PAGE)


def _anonymous(task: "DumpTask") -> int:
    """About how many bytes of a running task's memory will be stored."""
    try:
        _, resident, shared, *_ = map(int, read_all(f"/proc/{task.leader.tid}/statm").split())
    except OSError:
        return 0
    return (resident - shared) * PAGE


class Piece(NamedTuple):
    """Bytes of one run that go into the pages image at `offset`."""

    start: int
    length: int
    offset: int
    readable: bool


class AddressSpace:
    """One task's memory at dump."""

    def __init__(self, task: "DumpTask") -> None:
        self.task = task
        self.kinds = _kinds(task.areas)
        self._smaps = b""  # as read
        self._flags: dict[int, frozenset[str]] = {}
        self.behind: dict[int, tuple[int, int | None]] = {}  # shmid and fdflags of areas with a file or a segment
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
        self.pieces: list[Piece] = []
        self.pagemap: PagemapWriter | None = None
        self.rest: list[Batch] = []
        self.bytes = 0

    def look(self, dump: "Dump") -> None:
        """Frozen: read what will be another when the task goes on; enter the files of its areas.  Raises Refusal."""
        task = self.task
        # A leader that has ended while other threads live has no memory any more.
        self.stat = task.stat if task.leader.tid == task.pid else parse_stat(read_all(f"/proc/{task.leader.tid}/stat"))
        self.auxv = read_all(f"/proc/{task.leader.tid}/auxv")
        exe = f"/proc/{task.leader.tid}/exe"
        self.exe_file_id = regular.save_path(dump, f"{task.subject}, its executable", os.readlink(exe), exe, O_RDONLY)
        self._smaps = read_all(f"/proc/{task.leader.tid}/smaps", LARGE)
        self.runner_base = task.runner.base if isinstance(task.runner, Executor) else -1
        for area, what in zip(task.areas, self.kinds, strict=True):
            if what == "file":
                self.behind[area.start] = self._enter_file(dump, area)
            elif what in ("shmem", "memfd", "sysv"):
                self.behind[area.start] = segments.enter(dump, task, area, what)

    @property
    def flags(self) -> dict[int, frozenset[str]]:
        """VmFlags by an area's start; taken apart when they are asked for, which for most tasks is after the thaw."""
        if self._smaps:
            self._flags, self._smaps = parse_vm_flags(self._smaps), b""
            if any(vma.UNNAMED in flags for flags in set(self._flags.values())):
                self._flags = vma.with_names(self._flags)
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
            vmas=describe(self),
            dumpable=self.dumpable.value,
            thp_disabled=bool(self.thp_disabled.value > 0) or None,
        )

    def _enter_file(self, dump: "Dump", area: Area) -> tuple[int, int]:
        """Its number in files.img, and how it is to be opened."""
        task = self.task
        # A shared mapping that may become writable tells that its file was opened for writing.
        access = O_RDWR if area.shared and "mw" in self.flags.get(area.start, ()) else O_RDONLY
        path = f"/proc/{task.leader.tid}/map_files/{area.start:x}-{area.end:x}"
        subject = f"{task.subject}, area {area.start:#x}-{area.end:#x}"
        # maps says by itself that two areas are of one file: most need no look at it.
        known: dict[tuple[tuple[int, int], int, str, int], int] = dump.setdefault("memory:files", {})
        key = (area.dev, area.inode, area.path, access)
        if key not in known:
            known[key] = regular.save_path(dump, subject, area.path, path, access)
        return known[key], access

    def scan(self) -> None:
        """Frozen: find the pages to store."""
        private: list[Area] = []
        others: list[Area] = []
        for area, what in zip(self.task.areas, self.kinds, strict=True):
            (others if area.flags == MAP_SHARED or what in vma.KERNEL_KINDS else private).append(area)
        fd = pagemap.open_pagemap(self.task.leader.tid)
        try:
            runs = pagemap.scan_all(fd, private, others, guards=self.guards)
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

    def save_tags(self, images: "ImageWriter") -> "list[TagRunEntry]":
        """After the thaw: memory tags."""
        if not self.tags:
            return []
        from torpor.memory import tags

        return tags.save(images, self)

    def open(self, dump: "Dump", pages_id: int) -> None:
        """Frozen: make the pages image and lay out what goes into it."""
        self.pagemap = PagemapWriter(dump.images, self.task.pid, pages_id, PAGEMAP)
        for start, end, readable in _joined(self.runs):
            while start < end:
                length = end - start if end - start < CHUNK else CHUNK
                self.pieces.append(Piece(start, length, self.pagemap.add(start, length // PAGE), readable))
                self.bytes += length
                start += length
        self.fd = self.pagemap.open_pages()

    def start(self, dump: "Dump", pages_id: int, program: Program) -> None:
        """Frozen: set the task to run `program`, and then to write its pages, by pwritev.  `join` collects."""
        self.open(dump, pages_id)
        runner = self.task.runner
        assert runner is not None
        inside = [p for p in self.pieces if p.readable]
        self.left = [p for p in self.pieces if not p.readable]
        self.writing: list[tuple[list[Piece], Result]] = []
        if not isinstance(runner, Executor):
            runner.run(program)
            self.left += inside
            return
        if not self._may_write():
            self.left += inside
            inside = []
        if inside:
            self._write(runner, program, inside)
        first, *self.rest = runner.batches(program)
        runner.start(first)

    def _write(self, runner: Executor, program: Program, inside: list[Piece]) -> None:
        word = self.task.leader.arch.word
        wide = self.task.leader.arch.word_size == 8
        numbers = runner.send_fds(program, [self.fd])
        # Its number as a result, so that later batches of the program can use it too.
        remote = program.call("fcntl", Load32(numbers), F_DUPFD_CLOEXEC, 0)
        program.call("close", Load32(numbers))
        nearly_all = os.fstat(self.fd).st_size >= self.bytes - self.bytes // 16  # is prepared
        at_once = CHUNK if nearly_all else AT_ONCE
        for group in _groups(_cut(inside, at_once), at_once):
            if len(group) == 1 and wide:
                start, length, at, _ = group[0]
                result = program.call("pwrite64", remote, start, length, at, may_fail=True)
                self.writing.append((group, result))
                continue
            vector = b"".join(struct.pack(f"{word[0]}2{word[1]}", p.start, p.length) for p in group)
            at = group[0].offset
            result = program.call("pwritev", remote, program.put(vector), len(group), at, may_fail=True)
            self.writing.append((group, result))
        program.call("close", remote)

    def join(self) -> None:
        """Frozen: wait for the task, then copy what it could not write itself."""
        try:
            runner = self.task.runner
            if isinstance(runner, Executor):
                runner.finish()
                for batch in self.rest:
                    runner.start(batch)
                    runner.finish()
            for group, result in self.writing:
                self.left += _unwritten(group, result.value)
            for piece in self.left:
                self._copy(self.fd, piece)
            assert self.pagemap is not None
            if os.fstat(self.fd).st_size > self.pagemap.size:
                os.ftruncate(self.fd, self.pagemap.size)  # more was prepared
        finally:
            os.close(self.fd)

    def _may_write(self) -> bool:
        """A file size limit would kill the task by SIGXFSZ after the dump."""
        limit = self.task.limits[RLIMIT_FSIZE]
        return limit.soft in (INFINITY, -1) or limit.soft > self.bytes

    def _copy(self, fd: int, piece: Piece) -> None:
        leader = self.task.leader
        for at in range(0, piece.length, COPY):
            data = leader.read(piece.start + at, min(COPY, piece.length - at))
            try:
                while data:
                    written = os.pwrite(fd, data, piece.offset + at)
                    data, at = data[written:], at + written
            except OSError as error:
                raise _disk(error.errno or 0) from None

    def finish(self) -> None:
        """After the thaw: the pagemap itself."""
        assert self.pagemap is not None
        self.pagemap.finish()


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


def _joined(runs: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    """Runs of pages, those that follow each other in one: areas often do, and are written as one then."""
    joined: list[tuple[int, int, bool]] = []
    first = last = 0
    before = False
    for start, end, readable in runs:
        if start == last and readable == before:
            last = end
            continue
        if last:
            joined.append((first, last, before))
        first, last, before = start, end, readable
    return [*joined, (first, last, before)] if last else joined


def _unwritten(group: list[Piece], written: int) -> list[Piece]:
    """After a short write, or EFAULT: a page that the task itself may not read.  The controller takes it from there."""
    if written < 0 and -written in _DISK_ERRORS:
        raise _disk(-written)
    done = group[0].offset + max(written, 0)
    return [
        Piece(p.start + skip, p.length - skip, p.offset + skip, p.readable)
        for p in group
        if (skip := max(0, min(p.length, done - p.offset))) < p.length
    ]


def _auxv(data: bytes, word: str) -> list[int]:
    """Without AT_NULL at the end: CRIU takes 44 words at most, which x86_64 fills without it."""
    words = list(struct.unpack(f"{word[0]}{len(data) // struct.calcsize(word)}{word[1]}", data))
    while words[-2:] == [0, 0]:
        del words[-2:]
    return words


_DISK_ERRORS = frozenset({5, 27, 28, 30, 122})  # EIO EFBIG ENOSPC EROFS EDQUOT


def _disk(number: int) -> DumpFailed:
    return DumpFailed(
        "cannot write memory to the images directory",
        os.strerror(number),
        "make room, or choose another directory with -D",
        code="disk-full" if number in (28, 122) else "disk-error",
    )


def _cut(pieces: list[Piece], at_once: int) -> list[Piece]:
    """None larger than what is written at once."""
    return [
        piece
        if piece.length <= at_once
        else Piece(piece.start + at, min(at_once, piece.length - at), piece.offset + at, piece.readable)
        for piece in pieces
        for at in range(0, piece.length, at_once)
    ]


def _groups(pieces: list[Piece], at_once: int) -> list[list[Piece]]:
    """Pieces that one pwritev may take: neighbours in the image, not too many, not too large."""
    groups: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        last = groups[-1] if groups else None
        if (
            last is None
            or len(last) == MAX_IOVECS
            or size + piece.length > at_once
            or last[-1].offset + last[-1].length != piece.offset
        ):
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.length
    return groups
