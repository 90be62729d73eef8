# SPDX-License-Identifier: Apache-2.0
"""System V shared memory: segments that a tree has attached (shmget(2), shmat(2)).

A segment outlives its processes.  At restore it may still be there, under its id: then it is attached again and filled
with what it held at the dump, unless others use it now.  Otherwise it is made anew with its old id, which
/proc/sys/kernel/shm_next_id grants (Linux 3.8).  One that was marked to be removed is marked again at the end.
CRIU only dumps these in an IPC namespace of the tree's own; the image is the same: ipcns-shm-ID.

On 32-bit ARM the kernel chooses addresses for attachments that it does not take when they are asked for: shmat wants
multiples of SHMLBA there, four pages, even where the cache does not need it (__ARCH_FORCE_SHMLBA).  There a segment is
attached elsewhere and moved.  And struct shmid_ds is the old one, with user ids of 16 bits, unless IPC_64 asks for the
other (ARCH_WANT_IPC_PARSE_VERSION).
"""

from __future__ import annotations

import os

from torpor.arch import native
from torpor.errors import ImageError, KernelError, Refusal
from torpor.images.kinds import IPCNS_SHM
from torpor.images.pages import PAGE_SIZE as PAGE
from torpor.kernel.syscall import call
from torpor.memory.layout import PROT_MTE
from torpor.typed import TYPE_CHECKING, Callable, NamedTuple

if TYPE_CHECKING:
    from torpor.engine.program import Program
    from torpor.images.schema.ipc_shm import IpcShmEntry
    from torpor.images.schema.vma import VmaEntry
    from torpor.kernel.maps import Area
    from torpor.resources.context import Dump, DumpTask, Restore

IPC_NS = 3  # the IPC namespace's number in the images
IPC_PRIVATE, IPC_CREAT, IPC_EXCL = 0, 0o1000, 0o2000
IPC_RMID, IPC_SET, IPC_STAT, SHM_LOCK = 0, 1, 2, 11
SHM_RDONLY, SHM_EXEC = 0o10000, 0o100000
SHM_DEST, SHM_LOCKED = 0o1000, 0o2000
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
_KEY = "memory:sysv"
_DS_SIZE, _UID, _MODE = 256, 4, 20  # struct shmid64_ds: key, uid, gid, cuid, cgid, mode


class Shm(NamedTuple):
    """One line of /proc/sysvipc/shm (proc_sysvipc(5))."""

    key: int
    id: int
    mode: int
    size: int
    attached: int
    uid: int
    gid: int
    cuid: int
    cgid: int


def segments() -> dict[int, Shm]:
    """All segments of this IPC namespace, by id."""
    found = {}
    with open("/proc/sysvipc/shm", "rb") as lines:
        next(lines)
        for line in lines:
            f = line.split()
            shm = Shm(int(f[0]), int(f[1]), int(f[2], 8), int(f[3]), int(f[6]), *(int(x) for x in f[7:11]))
            found[shm.id] = shm
    return found


def enter(dump: Dump, task: DumpTask, area: Area) -> int:
    """Frozen: note the segment of an attached area; returns its id, which is its inode number."""
    where = f"{task.subject}, area {area.start:#x}-{area.end:#x}"
    shm = segments().get(area.inode)
    if shm is None:
        raise Refusal(where, "its SysV segment is of another IPC namespace", "run Torpor inside that namespace")
    if area.offset or area.size != (shm.size + PAGE - 1) & -PAGE:
        raise Refusal(where, "only a part of its SysV segment is mapped", "attach the whole segment (shmat)")
    dump.setdefault(_KEY, {})[shm.id] = shm
    return shm.id


def save(dump: Dump) -> None:
    """Write ipcns-shm.img; the content is in pagemap-shmem-ID."""
    from torpor.images.schema.ipc_desc import IpcDescEntry
    from torpor.images.schema.ipc_shm import IpcShmEntry

    entries = [
        IpcShmEntry(
            desc=IpcDescEntry(
                key=shm.key & 0xFFFFFFFF,
                uid=shm.uid,
                gid=shm.gid,
                cuid=shm.cuid,
                cgid=shm.cgid,
                mode=shm.mode,
                id=shm.id,
            ),
            size=shm.size,
            in_pagemaps=True,
        )
        for shm in dump.state.get(_KEY, {}).values()
    ]
    dump.images.write(IPCNS_SHM, entries, IPC_NS)


# -- restore ----------------------------------------------------------------------------------------------------------


def check(restore: Restore) -> None:
    """Before anything is created: the images are sane, and nobody else has these segments."""
    wanted: dict[int, IpcShmEntry] = {}
    for entry in restore.images.entries(IPCNS_SHM, IPC_NS):
        wanted[entry.desc.id] = entry
    restore.state[_KEY] = wanted
    if not wanted:
        return
    now = segments()
    for id, entry in wanted.items():
        there = now.get(id)
        if there is None:
            twin = next((s for s in now.values() if s.key == _signed(entry.desc.key) and s.key != IPC_PRIVATE), None)
            if twin is not None:
                raise Refusal(
                    f"SysV segment {id}",
                    f"its key {twin.key:#x} is taken by segment {twin.id}",
                    "remove that: ipcrm -m",
                )
        elif there.key != _signed(entry.desc.key) or there.size != entry.size:
            raise Refusal(f"SysV segment {id}", "another segment has its id now", f"remove that: ipcrm -m {id}")
        elif there.attached:
            raise Refusal(
                f"SysV segment {id}",
                f"{there.attached} other processes use it",
                "end them first: restoring would overwrite what they share",
            )


def _signed(key: int) -> int:
    return key - (1 << 32) if key >> 31 else key


def make(restore: Restore, shmid: int) -> IpcShmEntry:
    """Create the segment, unless it is there."""
    entry: IpcShmEntry | None = restore.state[_KEY].get(shmid)
    if entry is None:
        raise ImageError("the images are incomplete", f"SysV segment {shmid} is not in them")
    if shmid not in segments():
        with open("/proc/sys/kernel/shm_next_id", "w") as next_id:
            next_id.write(str(shmid))
        mode = entry.desc.mode & 0o777
        try:
            got = call("shmget", _signed(entry.desc.key), entry.size, IPC_CREAT | IPC_EXCL | mode)
        except OSError as error:
            raise KernelError(f"cannot create SysV segment {shmid}", error) from None
        restore.state.setdefault("sysv:created", []).append(got)
        if got != shmid:
            raise Refusal(f"SysV segment {shmid}", "its id is taken", "restore in another IPC namespace")
        _own(shmid, entry)
    return entry


def _own(shmid: int, entry: IpcShmEntry) -> None:
    import ctypes
    import struct

    buffer = ctypes.create_string_buffer(_DS_SIZE)
    version = native().ipc_version
    call("shmctl", shmid, IPC_STAT | version, ctypes.addressof(buffer))
    struct.pack_into("=II", buffer, _UID, entry.desc.uid, entry.desc.gid)
    struct.pack_into("=I", buffer, _MODE, entry.desc.mode & 0o777)
    call("shmctl", shmid, IPC_SET | version, ctypes.addressof(buffer))


def attach(program: Program, area: VmaEntry, hole: Callable[[int], int]) -> None:
    """Append the shmat of an area.  `hole`: an address where so many bytes are free in the task."""
    readonly = not area.prot & (PROT_WRITE | PROT_MTE)  # tags have to be put into it
    if area.fdflags is not None:  # CRIU does not say what it may become
        readonly = readonly and area.fdflags & os.O_ACCMODE == os.O_RDONLY
    flags = (SHM_RDONLY if readonly else 0) | (SHM_EXEC if area.prot & PROT_EXEC else 0)
    given = PROT_READ | (0 if readonly else PROT_WRITE) | area.prot & PROT_EXEC
    size = area.end - area.start
    if area.start % native().shmlba == 0:
        program.call("shmat", area.shmid, area.start, flags)
    else:
        # Not where the kernel likes: that may overlap the area's own place, which mremap refuses (EINVAL).
        at = program.call("shmat", area.shmid, hole(size), flags)
        program.call("mremap", at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, area.start)
    if area.prot != given:
        program.call("mprotect", area.start, size, area.prot)


def mark(restore: Restore) -> None:
    """Everything is attached: lock again what was locked, and mark what was marked to be removed."""
    for shmid, entry in restore.state.get(_KEY, {}).items():
        if entry.desc.mode & SHM_LOCKED:
            try:
                call("shmctl", shmid, SHM_LOCK, 0)
            except OSError as error:
                what = f"cannot lock SysV segment {shmid} (SHM_LOCK)"
                raise KernelError(what, error, "raise the limit of locked memory (ulimit -l)") from None
        if entry.desc.mode & SHM_DEST:
            call("shmctl", shmid, IPC_RMID, 0)


def undo(restore: Restore) -> None:
    """The restore failed: remove the segments that it made."""
    for shmid in restore.state.pop("sysv:created", []):
        try:
            call("shmctl", shmid, IPC_RMID, 0)
        except OSError:
            pass


def open_content(shmid: int, size: int) -> tuple[int, int]:
    """A descriptor through which the segment's pages can be written, by way of an attachment of our own; returns
    (descriptor, address to detach)."""
    import struct

    at = call("shmat", shmid, 0, 0) % (1 << 8 * struct.calcsize("P"))  # no negative number on 32-bit machines
    end = (at + size + PAGE - 1) & -PAGE
    return os.open(f"/proc/self/map_files/{at:x}-{end:x}", os.O_RDWR | os.O_CLOEXEC), at
