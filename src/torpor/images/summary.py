# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds, gathered from its images for those who look at it from outside.

The kind of an area is told by the bits of its `status`, but for two: a stack looks like other anonymous memory (the
main one holds `mm_start_stack`), and shared anonymous memory is a memfd called "/dev/zero".  Bytes of shared segments
stand in pagemaps of their own and are counted once, however many tasks map them.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass, field

from torpor.errors import ImageError
from torpor.images.kinds import (
    CORE,
    FDINFO,
    FILES,
    FS,
    IDS,
    MEMFD_INODE,
    MM,
    PAGEMAP,
    PSTREE,
    REMAP_FPATH,
    SHMEM_PAGEMAP,
    STATS,
    TORPOR_TASK,
    kind_of_file,
)
from torpor.images.pages import PE_PRESENT, PagemapReader
from torpor.images.schema.constants import TaskState
from torpor.images.schema.constants import VmaStatus as Vma

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.images.directory import ImageReader
    from torpor.images.schema.fdinfo import FdinfoEntry, FileEntry
    from torpor.images.schema.inventory import InventoryEntry
    from torpor.images.schema.memfd import MemfdInodeEntry
    from torpor.images.schema.stats import DumpStatsEntry
    from torpor.images.schema.vma import VmaEntry

# The order in which kinds of memory are shown.
MEMORY = ("anon", "heap", "stack", "file private", "file shared", "shmem", "memfd", "sysv", "device", "kernel")


@dataclass
class Area:
    start: int
    end: int
    kind: str
    name: str
    prot: int
    stored: int  # bytes in this checkpoint
    in_parent: int  # bytes in the one before

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass
class Task:
    pid: int
    ppid: int
    pgid: int
    sid: int
    threads: list[int]
    name: str = "?"
    state: str = "?"
    thread_names: list[str] = field(default_factory=list)
    exe: str = ""
    cwd: str = ""
    vm_id: int = 0
    files_id: int = 0
    areas: list[Area] = field(default_factory=list)
    uids: tuple[int, int] | None = None

    def memory(self) -> dict[str, tuple[int, int]]:
        """(size, bytes stored) by kind."""
        found: dict[str, tuple[int, int]] = {}
        for area in self.areas:
            size, stored = found.get(area.kind, (0, 0))
            found[area.kind] = size + area.size, stored + area.stored
        return found


@dataclass
class Segment:
    """Shared memory with a pagemap of its own."""

    shmid: int
    stored: int


@dataclass
class Summary:
    inventory: InventoryEntry
    when: float
    image_files: int = 0
    image_bytes: int = 0
    stats: DumpStatsEntry | None = None
    march: int | None = None
    tasks: list[Task] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    files: dict[int, FileEntry] = field(default_factory=dict)
    memfds: dict[int, MemfdInodeEntry] = field(default_factory=dict)
    remaps: dict[int, int] = field(default_factory=dict)  # by file id: RemapType
    tables: dict[int, list[FdinfoEntry]] = field(default_factory=dict)  # by files_id
    stored: int = 0  # bytes in all pages images
    has_parent: bool = False


def summarize(images: ImageReader) -> Summary:
    """Look at a finished checkpoint, or ImageError."""
    inventory = images.inventory()
    found = Summary(inventory, os.stat("inventory.img", dir_fd=images.dir_fd, follow_symlinks=False).st_mtime)
    names = images.names()
    found.has_parent = "parent" in names
    for name in names:
        known = kind_of_file(name)
        if known is None:
            continue
        found.image_files += 1
        size = os.stat(name, dir_fd=images.dir_fd, follow_symlinks=False).st_size
        found.image_bytes += size
        kind, id = known
        if kind.name == "PAGES":
            found.stored += size
        elif kind is SHMEM_PAGEMAP and isinstance(id, int):
            found.segments.append(Segment(id, PagemapReader(images, id, SHMEM_PAGEMAP).bytes_stored))
    try:
        stats = images.find(STATS, "dump")
        found.stats = stats.dump if stats else None
    except ImageError:
        pass  # nothing depends on them, so nobody waits for the disk: after a power failure they may be rubbish
    found.files = {file.id: file for file in images.entries(FILES)}
    found.memfds = {inode.inode_id: inode for inode in images.entries(MEMFD_INODE)}
    found.remaps = {remap.orig_id: remap.get("remap_type") or 0 for remap in images.entries(REMAP_FPATH)}
    by_pid: dict[int, Task] = {}
    for entry in images.entries(PSTREE):
        task = Task(entry.pid, entry.ppid, entry.pgid, entry.sid, list(entry.threads))
        if entry.pid in by_pid:
            raise ImageError("pstree.img is mangled", f"process {entry.pid} is in it twice")
        by_pid[entry.pid] = task
        found.tasks.append(task)
        _task(images, found, task)
    return found


def _task(images: ImageReader, found: Summary, task: Task) -> None:
    core = images.one(CORE, task.pid)
    found.march = core.mtype
    if core.tc is None:
        return  # a helper's, or of a foreign kind
    task.name, state = core.tc.comm, core.tc.task_state
    if state in (TaskState.DEAD, TaskState.ZOMBIE):
        code = core.tc.exit_code
        task.state = f"zombie, killed by signal {code & 127}" if code & 127 else f"zombie, exit status {code >> 8}"
        task.threads = []
        return
    task.state = "stopped" if state == TaskState.STOPPED else "alive"
    creds = core.thread_core.creds if core.thread_core else None
    if creds:
        task.uids = creds.uid, creds.gid
    for tid in task.threads:
        thread = core if tid == task.pid else images.find(CORE, tid)
        name = thread.thread_core.comm if thread and thread.thread_core else None
        if name and name != task.name and name not in task.thread_names:
            task.thread_names.append(name)
    ids = core.ids or images.find(IDS, task.pid)
    if ids:
        task.vm_id, task.files_id = ids.vm_id, ids.files_id
        if ids.files_id not in found.tables:
            found.tables[ids.files_id] = images.entries(FDINFO, ids.files_id)
    fs = images.find(FS, task.pid)
    if fs:
        task.cwd = file_name(found, fs.cwd_id)
    _memory(images, found, task)


def _memory(images: ImageReader, found: Summary, task: Task) -> None:
    mm = images.find(MM, task.pid)
    if mm is None:
        return
    task.exe = file_name(found, mm.exe_file_id)
    extra = images.find(TORPOR_TASK, task.pid)
    names = {area.start: area.name for area in extra.names} if extra else {}
    map_ = Pages(PagemapReader(images, task.pid)) if images.exists(PAGEMAP, task.pid) else None
    for vma in mm.vmas:
        kind, name = area_kind(found, vma, mm.mm_start_stack)
        stored, in_parent = map_.between(vma.start, vma.end) if map_ else (0, 0)
        task.areas.append(Area(vma.start, vma.end, kind, name or names.get(vma.start, ""), vma.prot, stored, in_parent))


class Pages:
    """How many bytes of an interval a pagemap has."""

    def __init__(self, pagemap: PagemapReader) -> None:
        self.runs, self.page = pagemap.runs, pagemap.page_size
        self.starts = [run.vaddr for run in self.runs]

    def between(self, start: int, end: int) -> tuple[int, int]:
        """(bytes stored here, bytes in the parent)."""
        at = max(bisect_right(self.starts, start) - 1, 0)
        stored = in_parent = 0
        for index in range(at, len(self.runs)):
            run = self.runs[index]
            if run.vaddr >= end:
                break
            length = min(end, run.vaddr + run.nr_pages * self.page) - max(start, run.vaddr)
            if length > 0:
                if run.flags & PE_PRESENT:
                    stored += length
                else:
                    in_parent += length
        return stored, in_parent


def area_kind(found: Summary, vma: VmaEntry, stack: int) -> tuple[str, str]:
    """The kind of an area, and the file or segment in it."""
    status = vma.status
    if status & (Vma.VMA_AREA_VSYSCALL | Vma.VMA_AREA_VDSO | Vma.VMA_AREA_VVAR):
        return "kernel", "vdso" if status & Vma.VMA_AREA_VDSO else "vvar" if status & Vma.VMA_AREA_VVAR else "vsyscall"
    if status & Vma.VMA_AREA_SYSVIPC:
        return "sysv", f"segment {vma.shmid}"
    if status & Vma.VMA_AREA_MEMFD:
        name = file_name(found, vma.shmid)
        return ("shmem", "") if name == "memfd:/dev/zero" else ("memfd", name)
    if status & (Vma.VMA_FILE_PRIVATE | Vma.VMA_FILE_SHARED):
        return "file private" if status & Vma.VMA_FILE_PRIVATE else "file shared", file_name(found, vma.shmid)
    if status & (Vma.VMA_AREA_SOCKET | Vma.VMA_AREA_AIORING):
        return "device", "socket ring" if status & Vma.VMA_AREA_SOCKET else "aio ring"
    if status & Vma.VMA_ANON_SHARED:
        return "shmem", ""
    if status & Vma.VMA_AREA_HEAP:
        return "heap", ""
    if status & Vma.VMA_AREA_STACK or vma.start <= stack < vma.end:
        return "stack", ""
    return "anon", ""


def file_name(found: Summary, id: int) -> str:
    """The name of an open or mapped file, "" when the images do not have it."""
    file = found.files.get(id)
    if file is None:
        return ""
    if file.reg:
        return file.reg.name
    if file.memfd:
        inode = found.memfds.get(file.memfd.inode_id)
        return f"memfd:{inode.name}" if inode else "memfd"
    return ""
