# SPDX-License-Identifier: Apache-2.0
"""How pages of frozen tasks get into the pages images (which pages: `torpor.memory.dump`).

The task writes its own pages: one pwritev(2) inside it moves up to 1,024 runs from its memory to the page cache in a
single copy (5.4 GB/s; going through pipes makes 1.3).  What the task cannot read itself (PROT_NONE, protection keys),
or may not write (RLIMIT_FSIZE), the controller copies through /proc/PID/mem.
"""

import os
import struct
from resource import RLIMIT_FSIZE

from torpor.engine.executor import Executor
from torpor.engine.program import Batch, Load32, Program, Result
from torpor.images.kinds import PAGEMAP, PAGES
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.pages import PagemapWriter
from torpor.kernel.proc import INFINITY
from torpor.kernel.procfs import read_all
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.images.directory import ImageWriter
    from torpor.resources.context import DumpTask

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
CALLS, CALL = 2048, 128  # bytes of a program: of the calls that take and close the descriptor; of any other call


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


class PageWriter:
    """One task's pages on their way into its pages image."""

    def __init__(
        self, images: "ImageWriter", task: "DumpTask", pages_id: int, runs: list[tuple[int, int, bool]]
    ) -> None:
        """Frozen: make the pages image and lay out what goes into it.  `runs`: start, end, whether the task can read
        them itself."""
        self.task, self.bytes = task, 0
        self.pagemap = PagemapWriter(images, task.pid, pages_id, PAGEMAP)
        self.inside: list[Piece] = []  # for the task itself to write
        self.left: list[Piece] = []  # for the controller
        for start, end, readable in _joined(runs):
            while start < end:
                length = end - start if end - start < CHUNK else CHUNK
                piece = Piece._make((start, length, self.pagemap.add(start, length // PAGE)))
                (self.inside if readable else self.left).append(piece)
                self.bytes += length
                start += length
        self.writing: list[tuple[list[Piece], Result]] = []
        self.rest: list[Batch] = []
        self.fd = self.pagemap.open_pages()

    def start(self) -> None:
        """Frozen: set the task to write its pages, by pwritev.  `join` collects."""
        runner = self.task.runner
        assert runner is not None
        if not isinstance(runner, Executor) or not self._may_write():
            self.left += self.inside
        elif self.inside:
            self._write(runner)

    def then(self, program: Program) -> None:
        """Frozen: have the task run `program`, too, before `join` ends: behind its pages, where it writes them."""
        runner = self.task.runner
        if not isinstance(runner, Executor):
            self.task.run(program)
            return
        self.rest += runner.batches(program)
        if self.rest and not runner.running:
            runner.start(self.rest.pop(0))

    def _write(self, runner: Executor) -> None:
        """In programs of which each is one batch: whatever ends the dump between two, the task has nothing of ours."""
        nearly_all = os.fstat(self.fd).st_size >= self.bytes - self.bytes // 16  # is prepared
        at_once = CHUNK if nearly_all else AT_ONCE
        groups = _groups(_cut(self.inside, at_once), at_once)
        while groups:
            number = _fitting(groups, runner.area.room)
            self._write_groups(runner, groups[:number])
            groups = groups[number:]

    def _write_groups(self, runner: Executor, groups: list[list[Piece]]) -> None:
        word = self.task.leader.arch.word
        wide = self.task.leader.arch.word_size == 8
        program = Program()
        remote = Load32(runner.send_fds(program, [self.fd]))
        for group in groups:
            if len(group) == 1 and wide:
                start, length, at = group[0]
                result = program.call("pwrite64", remote, start, length, at, may_fail=True)
                self.writing.append((group, result))
                continue
            vector = b"".join(struct.pack(f"{word[0]}2{word[1]}", p.start, p.length) for p in group)
            at = group[0].offset
            result = program.call("pwritev", remote, program.put(vector), len(group), at, may_fail=True)
            self.writing.append((group, result))
        program.call("close", remote)
        self.then(program)

    def join(self) -> None:
        """Frozen: wait for the task, then copy what it could not write itself."""
        try:
            runner = self.task.runner
            if isinstance(runner, Executor) and runner.running:
                runner.finish()
                for batch in self.rest:
                    runner.start(batch)
                    runner.finish()
            for group, result in self.writing:
                if result.value < 0 and -result.value in _DISK_ERRORS:
                    raise self._disk_error(-result.value)
                self.left += _unwritten(group, result.value)
            for piece in self.left:
                self._copy(self.fd, piece)
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
                raise self._disk_error(error.errno or 0) from None

    def _disk_error(self, number: int) -> OSError:
        return OSError(number, os.strerror(number), PAGES.file_name(self.pagemap.pages_id))

    def finish(self) -> None:
        """After the thaw: the pagemap itself."""
        self.pagemap.finish()


def _fitting(groups: list[list[Piece]], room: int) -> int:
    """How many of the first groups' calls fit into a batch with so much room, one at least."""
    left = room - CALLS
    for number, group in enumerate(groups):
        left -= CALL + 16 * len(group)
        if left < 0:
            return max(number, 1)
    return len(groups)


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
    done = group[0].offset + max(written, 0)
    return [
        Piece(p.start + skip, p.length - skip, p.offset + skip)
        for p in group
        if (skip := max(0, min(p.length, done - p.offset))) < p.length
    ]


_DISK_ERRORS = frozenset({5, 27, 28, 30, 122})  # EIO EFBIG ENOSPC EROFS EDQUOT


def _cut(pieces: list[Piece], at_once: int) -> list[Piece]:
    """None larger than what is written at once."""
    return [
        piece
        if piece.length <= at_once
        else Piece(piece.start + at, min(at_once, piece.length - at), piece.offset + at)
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
