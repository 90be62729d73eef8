# SPDX-License-Identifier: Apache-2.0
"""memfd files: files without a path, on the kernel's own tmpfs.  memfd_create(2).

The inode and its content are a shared segment (`torpor.memory.segments`), stored once, however many descriptions and
areas there are of it; here are the descriptions.  Surprising facts:

- Seals that forbid writing also forbid what a restore has to do, so they are put back when everything is mapped.
- A memfd that was not made for sealing has one seal, F_SEAL_SEAL.
- The name may contain anything but a NUL, " (deleted)" too, which the kernel adds once more.
- A memfd of hugetlb pages looks the same, but lives on another file system.
"""

import errno
import fcntl
import os

from torpor.errors import ImageError
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.memfd import MemfdFileEntry
from torpor.kernel.maps import shm_device
from torpor.memory import segments
from torpor.resources import inode, lacking
from torpor.resources.description import Described, extras, save_owner, set_flags
from torpor.resources.pipe import reopen
from torpor.resources.regular import refuse_outgrown
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.torpor_file import TorporFileEntry
    from torpor.resources.context import Dump, Restore, SeenFile

MEMFD = 18  # FdTypes
PREFIX, SUFFIX = "/memfd:", " (deleted)"
MAX_POSITION = (1 << 63) - 1
OLD_SEALS = 0x1F  # of Linux 5.1; F_SEAL_EXEC came with 6.3


class Memfd(Described):
    covers = frozenset({"fd:memfd"})
    type = MEMFD
    field = "memfd"

    # -- dump ---------------------------------------------------------------------------------------------------------
    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        device = seen.stat.st_dev
        if (os.major(device), os.minor(device)) != shm_device():
            raise seen.refusal("a memfd of hugetlb pages cannot be dumped", "use one of ordinary pages instead")
        if seen.info.status_flags & os.O_PATH:
            raise seen.refusal("an O_PATH descriptor of a memfd cannot be dumped", "close it first")
        refuse_outgrown(seen)

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        owner = save_owner(seen.fd)
        known = segments.of(dump).by_inode.get((seen.stat.st_dev, seen.stat.st_ino))
        if known is None:
            # Opened again: a position of its own, and readable whatever the task's description is.
            fd = os.open(f"/proc/self/fd/{seen.fd}", os.O_RDONLY | os.O_CLOEXEC)
            known = segments.of(dump).enter(fd, seen.link.removeprefix(PREFIX).removesuffix(SUFFIX))
            known.seals = fcntl.fcntl(known.fd, segments.F_GET_SEALS)
            segments.save_inode(dump, known, seen.id, seen.subject)
        flags, pos = seen.info.status_flags, seen.info.pos
        memfd = MemfdFileEntry(id=seen.id, flags=flags, pos=pos, fown=owner, inode_id=known.shmid)
        return FileEntry(type=MEMFD, id=seen.id, memfd=memfd)

    # -- restore ------------------------------------------------------------------------------------------------------
    def check(self, entry: FileEntry, restore: "Restore") -> None:
        memfd = entry.memfd
        if memfd is None:
            raise ImageError(f"files.img, file {entry.id}", "a memfd without its entry")
        if memfd.flags & os.O_ACCMODE == os.O_ACCMODE or memfd.flags & os.O_PATH:
            raise ImageError(f"files.img, memfd {entry.id}", f"impossible flags {memfd.flags:#o}")
        if memfd.pos > MAX_POSITION:
            raise ImageError(f"files.img, memfd {entry.id}", f"impossible position {memfd.pos}")
        own = extras(restore).get(entry.id)
        if own is not None and not inode.are_possible(own):
            raise ImageError(f"torpor-files.img, memfd {entry.id}", "impossible attributes")
        segments.check_inode(restore, memfd.inode_id)
        seals = segments.seals_of(restore, memfd.inode_id) & ~OLD_SEALS
        if seals or (own is not None and (own.attribute_names or own.inode_flags or own.write_hint)):
            has, error = _trial(seals, own)
            if error:
                raise lacking.refused(lacking.file_subject(restore, entry.id, "memfd"), has, error)

    def make(self, entry: FileEntry, restore: "Restore") -> int:
        memfd = entry.memfd
        assert memfd is not None  # check
        fd = reopen(segments.open_segment(restore, memfd.inode_id), memfd.flags)
        set_flags(fd, memfd.flags)
        os.lseek(fd, memfd.pos, os.SEEK_SET)
        return fd


def _trial(seals: int, own: "TorporFileEntry | None") -> tuple[str, int]:
    """What of this a new memfd cannot have here, in words, and the error's number; 0: it can have all."""
    fd = segments.new_memfd("torpor")
    try:
        if own is not None:
            inode.restore(own, f"/proc/self/fd/{fd}", fd)
        fcntl.fcntl(fd, segments.F_ADD_SEALS, seals)
    except inode.InodeRefused as error:
        return error.has, error.errno
    except OSError as error:
        return f"it has seals that are not in every kernel ({seals:#x})", error.errno or errno.EINVAL
    finally:
        os.close(fd)
    return "", 0


FILE_KINDS = [Memfd()]
