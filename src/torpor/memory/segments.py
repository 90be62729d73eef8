# SPDX-License-Identifier: Apache-2.0
"""Shared segments: memory that has an inode on the kernel's own tmpfs and is stored once, however many map it.

Shared anonymous memory, memfds and SysV segments are files inside.  In images the first two are memfds (a shared
anonymous one is called "/dev/zero"), a SysV segment goes by its IPC id.  Each segment's pages stand in
pagemap-shmem-SHMID, where vaddr is the offset in the segment.  Holes are not stored.
"""

import os
from typing import TYPE_CHECKING

from torpor.errors import Refusal
from torpor.images.kinds import MEMFD_INODE, SHMEM_PAGEMAP
from torpor.images.pages import PagemapWriter
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.memfd import MemfdFileEntry, MemfdInodeEntry
from torpor.images.schema.vma import VmaEntry
from torpor.kernel.maps import DELETED, Area
from torpor.resources.regular import no_owner

if TYPE_CHECKING:
    from torpor.resources.context import Dump, DumpTask

MEMFD = 18  # FdTypes
PAGE = 4096
F_GET_SEALS = 1034
KEY = "memory:segments"


class Segment:
    """One inode.  `fd`: our own descriptor; `shmid`: its number in images."""

    def __init__(self, fd: int, name: str, shmid: int, stat: os.stat_result) -> None:
        self.fd, self.name, self.shmid, self.stat = fd, name, shmid, stat
        self.seals = 0
        self.files: dict[int, int] = {}  # open flags → id in files.img, for areas
        self.bytes = 0


class Segments:
    """All segments of a dump, by inode."""

    def __init__(self) -> None:
        self.by_inode: dict[tuple[int, int], Segment] = {}

    def enter(self, fd: int, name: str) -> Segment:
        """The segment behind `fd`, which is kept if it is new and closed otherwise."""
        stat = os.fstat(fd)
        key = (stat.st_dev, stat.st_ino)
        if key in self.by_inode:
            os.close(fd)
            return self.by_inode[key]
        segment = Segment(fd, name, len(self.by_inode) + 1, stat)
        self.by_inode[key] = segment
        return segment


def of(dump: "Dump") -> Segments:
    """The dump's segments; resources/memfd.py enters open memfds too."""
    if KEY not in dump.state:
        dump.state[KEY] = Segments()
    segments: Segments = dump.state[KEY]
    return segments


def enter(dump: "Dump", task: "DumpTask", area: Area, kind: str, entry: VmaEntry) -> None:
    """Enter the segment of an area and point the area's entry to it."""
    path = f"/proc/{task.pid}/map_files/{area.start:x}-{area.end:x}"
    if kind == "sysv":
        raise Refusal(f"{task.subject}, area {area.start:#x}", "SysV shared memory cannot be dumped yet", "")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    name = "/dev/zero" if kind == "shmem" else area.path.removesuffix(DELETED).removeprefix("/memfd:")
    segment = of(dump).enter(fd, name)
    if kind == "memfd":
        import fcntl

        segment.seals = fcntl.fcntl(segment.fd, F_GET_SEALS)
    access = os.O_RDWR  # a memfd is always opened for both; what the mapping may do is in its prot
    if access not in segment.files:
        segment.files[access] = id = dump.new_file_id()
        memfd = MemfdFileEntry(id=id, flags=access, pos=0, fown=no_owner(), inode_id=segment.shmid)
        dump.file_entries.append(FileEntry(type=MEMFD, id=id, memfd=memfd))
    entry.shmid = segment.files[access]
    entry.fdflags = access


def store(dump: "Dump", next_pages_id: int) -> int:
    """Frozen: write the pages of all segments; returns the next free pages id."""
    if KEY not in dump.state:
        return next_pages_id
    for segment in of(dump).by_inode.values():
        writer = PagemapWriter(dump.images, segment.shmid, next_pages_id, SHMEM_PAGEMAP)
        next_pages_id += 1
        out = writer.open_pages()
        try:
            for start, end in _data(segment.fd):
                writer.add(start, (end - start) // PAGE)
                _copy(segment.fd, out, start, end - start)
                segment.bytes += end - start
        finally:
            os.close(out)
        writer.finish()
    return next_pages_id


def _data(fd: int) -> list[tuple[int, int]]:
    """Parts of a file that are not holes, in whole pages."""
    size = os.fstat(fd).st_size
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start & -PAGE, (at + PAGE - 1) & -PAGE))
    return found


def _copy(source: int, out: int, start: int, length: int) -> None:
    """Append `length` bytes; the last page of a file may be cut short, and is filled up with zeros."""
    end = start + length
    while start < end:
        sent = os.sendfile(out, source, start, end - start)
        if sent == 0:
            os.write(out, bytes(end - start))
            break
        start += sent


def save_inodes(dump: "Dump") -> None:
    """Write memfd.img."""
    if KEY not in dump.state:
        return
    dump.images.write(
        MEMFD_INODE,
        [
            MemfdInodeEntry(
                name=segment.name,
                uid=segment.stat.st_uid,
                gid=segment.stat.st_gid,
                size=segment.stat.st_size,
                shmid=segment.shmid,
                seals=segment.seals,
                inode_id=segment.shmid,
                mode=segment.stat.st_mode & 0o7777,
            )
            for segment in of(dump).by_inode.values()
        ],
    )
