# SPDX-License-Identifier: Apache-2.0
"""Shared segments: memory that has an inode on the kernel's own tmpfs and is stored once, however many map it.

Shared anonymous memory, memfds and SysV segments are files inside.  In images the first two are memfds (a shared
anonymous one is called "/dev/zero"), a SysV segment goes by its IPC id.  Each segment's pages stand in
pagemap-shmem-SHMID, where vaddr is the offset in the segment.  Holes are not stored.
"""

from __future__ import annotations

import errno
import os

from torpor.arch import native
from torpor.errors import ImageError, Refusal, RestoreFailed
from torpor.images.kinds import MEMFD_INODE, SHMEM_PAGEMAP
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.images.pages import PagemapWriter, PageStore
from torpor.images.schema.fdinfo import FileEntry
from torpor.kernel import file_facts
from torpor.kernel.maps import DELETED, Area
from torpor.kernel.process import MOST_SENT
from torpor.kernel.syscall import call
from torpor.memory import areas as vma
from torpor.memory import sysv
from torpor.resources import inode
from torpor.resources.description import NOBODY, extra, extras
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.memfd import MemfdFileEntry, MemfdInodeEntry
    from torpor.images.schema.vma import VmaEntry
    from torpor.resources.context import Dump, DumpTask, Restore

MEMFD = 18  # FdTypes
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
F_SEAL_SEAL, F_SEAL_WRITE = 1, 8
MFD_EXEC = 0x10
MAX_SEGMENT = 1 << 46
MAX_MODE = 0o177777
FIRST_SHMID = 1 << 30  # of memfds: IPC ids, which name pagemaps too, are far below
KEY = "memory:segments"


class Segment:
    """One inode.  `fd`: our own descriptor; `shmid`: its number in images."""

    def __init__(self, fd: int, name: str, shmid: int, stat: os.stat_result, is_sysv: bool) -> None:
        self.fd, self.name, self.shmid, self.stat, self.is_sysv = fd, name, shmid, stat, is_sysv
        self.seals = F_SEAL_SEAL  # what anonymous memory has
        self.files: dict[int, int] = {}  # open flags → id in files.img, for areas
        self.bytes = 0
        self.saved = False


class Segments:
    """All segments of a dump, by inode."""

    def __init__(self) -> None:
        self.by_inode: dict[tuple[int, int], Segment] = {}

    def enter(self, fd: int, name: str, ipc_id: int = -1) -> Segment:
        """The segment behind `fd`, which is kept if it is new and closed otherwise."""
        stat = file_facts.fstat(fd)
        key = (stat.st_dev, stat.st_ino)
        if key in self.by_inode:
            os.close(fd)
            return self.by_inode[key]
        shmid = ipc_id if ipc_id >= 0 else FIRST_SHMID + len(self.by_inode)
        segment = Segment(fd, name, shmid, stat, ipc_id >= 0)
        self.by_inode[key] = segment
        return segment


def of(dump: Dump) -> Segments:
    """The dump's segments; resources/memfd.py enters open memfds too."""
    if KEY not in dump.state:
        dump.state[KEY] = Segments()
    segments: Segments = dump.state[KEY]
    return segments


def enter(dump: Dump, task: DumpTask, area: Area, kind: str, writable: bool) -> tuple[int, int]:
    """Enter the segment of an area; returns what its entry points to it with: shmid, fdflags.  `writable`: whether it
    may ever be written."""
    path = f"/proc/{task.leader.tid}/map_files/{area.start:x}-{area.end:x}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    access = os.O_RDWR if writable else os.O_RDONLY
    if kind == "sysv":
        of(dump).enter(fd, "", area.inode)
        return sysv.enter(dump, task, area), access
    name = "/dev/zero" if kind == "shmem" else area.path.removesuffix(DELETED).removeprefix("/memfd:")
    segment = of(dump).enter(fd, name)
    if kind == "memfd":
        import fcntl

        segment.seals = fcntl.fcntl(segment.fd, F_GET_SEALS)
    if access not in segment.files:
        segment.files[access] = id = dump.new_file_id()
        from torpor.images.schema.memfd import MemfdFileEntry

        memfd = MemfdFileEntry(id=id, flags=access, pos=0, fown=NOBODY, inode_id=segment.shmid)
        dump.file_entries.append(FileEntry(type=MEMFD, id=id, memfd=memfd))
        if kind == "memfd":
            save_inode(dump, segment, id, f"{task.subject}, area {area.start:#x}-{area.end:#x} ({area.path})")
    return segment.files[access], access


def save_inode(dump: Dump, segment: Segment, id: int, subject: str) -> None:
    """Enter what CRIU's memfd.img has no place for, once, with the file of this id.  Raises Refusal."""
    if segment.saved:
        return
    segment.saved = True
    own = extra(dump, id)
    own.atime_ns, own.mtime_ns = segment.stat.st_atime_ns, segment.stat.st_mtime_ns
    inode.save(own, subject, f"/proc/self/fd/{segment.fd}", segment.fd)


def store(dump: Dump, next_pages_id: int) -> int:
    """Frozen: write the pages of all segments; returns the next free pages id."""
    if KEY not in dump.state:
        return next_pages_id
    for segment in of(dump).by_inode.values():
        writer = PagemapWriter(dump.images, segment.shmid, next_pages_id, SHMEM_PAGEMAP)
        next_pages_id += 1
        out = writer.open_pages()
        try:
            os.ftruncate(out, 0)
            for start, end in data_runs(segment.fd):
                writer.add(start, (end - start) // PAGE)
                _copy(segment.fd, out, start, end - start)
                segment.bytes += end - start
            dump.images.bytes_written += segment.bytes
        finally:
            os.close(out)
        writer.finish()
    return next_pages_id


def bytes_stored(dump: Dump) -> int:
    """Of pages of all segments."""
    return sum(segment.bytes for segment in of(dump).by_inode.values()) if KEY in dump.state else 0


def data_runs(fd: int) -> list[tuple[int, int]]:
    """Parts of a file that are not holes, in whole pages."""
    size = file_facts.fstat(fd).st_size
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
        sent = os.sendfile(out, source, start, min(end - start, MOST_SENT))
        if sent == 0:
            os.write(out, bytes(end - start))
            break
        start += sent


def save_inodes(dump: Dump) -> None:
    """Write memfd.img."""
    if KEY not in dump.state:
        return
    from torpor.images.schema.memfd import MemfdInodeEntry

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
                mode=segment.stat.st_mode,
            )
            for segment in of(dump).by_inode.values()
            if not segment.is_sysv
        ],
    )
    sysv.save(dump)


# -- restore ----------------------------------------------------------------------------------------------------------

_INODES = "memory:memfd inodes"
_OPEN = "memory:open segments"


def check(restore: Restore) -> None:
    """Before anything is created: the segments' images are there and sane."""
    inodes: dict[int, MemfdInodeEntry] = {}
    for one in restore.images.entries(MEMFD_INODE):
        if one.size > MAX_SEGMENT or one.inode_id in inodes:
            raise ImageError("memfd.img is mangled", f"segment {one.inode_id} is there twice, or too large")
        if "\0" in one.name or len(os.fsencode(one.name)) > 249:
            raise ImageError("memfd.img is mangled", f"segment {one.inode_id} has an impossible name")
        if (one.mode or 0) > MAX_MODE:
            raise ImageError("memfd.img is mangled", f"segment {one.inode_id} has the impossible mode {one.mode:#o}")
        if one.hugetlb_flag is not None:
            why = "it was made of hugetlb pages, which Torpor does not restore"
            raise Refusal(f"memfd {one.name} in these images", why)
        inodes[one.inode_id] = one
        if not one.size:
            continue  # CRIU writes no pagemap then
        with PageStore(restore.images, one.shmid, SHMEM_PAGEMAP) as store:
            for run, level in store.pieces:
                if level is None or run.vaddr + run.nr_pages * PAGE > one.size + PAGE - 1:
                    raise ImageError("the pages of a shared segment are mangled", f"segment {one.inode_id}")
    restore.state[_INODES] = inodes
    sysv.check(restore)


def seals_of(restore: Restore, inode_id: int) -> int:
    """After `check`."""
    inode = restore.state.get(_INODES, {}).get(inode_id)
    return inode.seals if inode is not None else 0


def check_inode(restore: Restore, inode_id: int) -> None:
    """After `check`: an image names this segment.  Raises ImageError."""
    if inode_id not in restore.state.get(_INODES, (inode_id,)):  # where `check` failed, that has been told
        raise ImageError("memfd.img is incomplete", f"segment {inode_id} is not there")


def shmid_of(restore: Restore, area: VmaEntry) -> int | None:
    """After `check`: by what number images have the segment that an area shows; None: it shows none, or an empty
    one."""
    if area.status & vma.SYSVIPC:
        return area.shmid
    entry = restore.files.get(area.shmid) if area.status & (vma.FILE_PRIVATE | vma.FILE_SHARED) else None
    memfd = restore.state[_INODES].get(entry.memfd.inode_id) if entry is not None and entry.memfd is not None else None
    return memfd.shmid if memfd is not None and memfd.size else None


def pages(restore: Restore, shmid: int) -> PageStore:
    """What is stored of one that is not empty; to be closed."""
    return PageStore(restore.images, shmid, SHMEM_PAGEMAP)


def fill_sysv(restore: Restore, shmid: int) -> None:
    """Make and fill a SysV segment, once."""
    done: set[int] = restore.state.setdefault("memory:sysv filled", set())
    if shmid in done:
        return
    done.add(shmid)
    entry = sysv.make(restore, shmid)
    fd, at = sysv.open_content(shmid, entry.size)
    try:
        _fill_pages(restore, fd, shmid, entry.size)
    finally:
        os.close(fd)
        call("shmdt", at)


def open_segment(restore: Restore, inode_id: int) -> int:
    """Our own read-write descriptor of a segment, which is made and filled on first use.  Not to be closed."""
    opened: dict[int, int] = restore.state.setdefault(_OPEN, {})
    if inode_id not in opened:
        check_inode(restore, inode_id)
        opened[inode_id] = _make(restore, restore.state[_INODES][inode_id])
    return opened[inode_id]


def _make(restore: Restore, memfd: MemfdInodeEntry) -> int:
    anonymous = memfd.name == "/dev/zero" and memfd.size > 0
    if anonymous:
        fd = _anonymous(memfd.size)
    else:
        fd = new_memfd(memfd.name)
        os.ftruncate(fd, memfd.size)
    if memfd.size:
        _fill_pages(restore, fd, memfd.shmid, memfd.size)
    os.fchown(fd, memfd.uid, memfd.gid)  # which clears the bit that sets the user id
    if memfd.mode is not None and not anonymous:
        os.fchmod(fd, memfd.mode)
    return fd


def new_memfd(name: str) -> int:
    """May be executed, which its mode and seals can forbid later: the other way round cannot be."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | MFD_EXEC)
    except OSError:  # EINVAL: before 6.3; EACCES: vm.memfd_noexec = 2
        return os.memfd_create(name, flags)


def _fill_pages(restore: Restore, fd: int, shmid: int, size: int) -> None:
    with PageStore(restore.images, shmid, SHMEM_PAGEMAP) as store:
        for run, level in store.pieces:
            assert level is not None
            pages = level.open_pages()
            try:
                _fill(fd, pages, run.vaddr, min(run.nr_pages * PAGE, size - run.vaddr), run.offset)
            finally:
                os.close(pages)


def seal(restore: Restore) -> None:
    """When everything is mapped: put the memfds' seals back (F_SEAL_WRITE forbids new writable mappings), and before
    these what writing has changed.  Raises OSError, RestoreFailed."""
    import fcntl

    owns = {entry.memfd.inode_id: own for id, own in extras(restore).items()
            if own.mtime_ns is not None and (entry := restore.files.get(id)) and entry.memfd is not None}  # fmt: skip
    for inode_id, fd in restore.state.get(_OPEN, {}).items():
        memfd = restore.state[_INODES][inode_id]
        own = owns.get(inode_id)
        if own is not None:
            inode.restore(own, f"/proc/self/fd/{fd}", fd)
            if own.atime_ns is not None and own.mtime_ns is not None:
                file_facts.utime(fd, ns=(own.atime_ns, own.mtime_ns))
        if memfd.seals and memfd.name != "/dev/zero":
            try:
                fcntl.fcntl(fd, F_ADD_SEALS, memfd.seals)
            except OSError as error:
                raise RestoreFailed(f"cannot seal memfd {memfd.name}", error.strerror or "") from None


def only_read(restore: Restore, memfd: MemfdFileEntry, writing: bool) -> bool:
    """Whether what is mapped through this descriptor of a memfd may never be written: it is read-only, unless the area
    itself says otherwise (`writing`), or the memory is sealed against writing, which the kernel refuses while any
    mapping may be written: there CRIU's images say what cannot have been."""
    if restore.state[_INODES][memfd.inode_id].seals & F_SEAL_WRITE:
        return True
    return not writing and memfd.flags & os.O_ACCMODE == os.O_RDONLY


def _anonymous(size: int) -> int:
    """A descriptor of shared anonymous memory: what mmap(MAP_SHARED | MAP_ANONYMOUS) makes, through map_files.

    What is larger than the machine's memory was mapped with MAP_NORESERVE."""
    import ctypes
    import mmap

    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, size, flags)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        memory = mmap.mmap(-1, size, flags | native().map_noreserve)
    view = ctypes.c_char.from_buffer(memory)
    start = ctypes.addressof(view)
    del view
    end = (start + size + PAGE - 1) & -PAGE
    fd = os.open(f"/proc/self/map_files/{start:x}-{end:x}", os.O_RDWR | os.O_CLOEXEC)
    memory.close()
    return fd


def _fill(fd: int, pages: int, at: int, length: int, offset: int) -> None:
    while length > 0:
        data = os.pread(pages, min(length, 1 << 20), offset)
        if not data:
            raise ImageError("the pages of a shared segment are too short")
        os.pwrite(fd, data, at)
        at, offset, length = at + len(data), offset + len(data), length - len(data)
