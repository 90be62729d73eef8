# SPDX-License-Identifier: Apache-2.0
"""Files that have a path: regular files, directories, symbolic links (O_PATH).

Also what is not an open descriptor but names a file: mapped files, executables, working directories and roots, through
`save_path`.  /proc shows a path, and " (deleted)" after it when the name is gone, or when the file is really called so:
only a look at the name's own inode tells.
"""

import os
import stat as st
from typing import TYPE_CHECKING

from torpor.errors import Refusal
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.fown import FownEntry
from torpor.images.schema.regfile import RegFileEntry
from torpor.resources.base import FileKind

if TYPE_CHECKING:
    from torpor.resources.context import Dump, SeenFile

REG = 1  # FdTypes
DELETED = " (deleted)"


def no_owner() -> FownEntry:
    return FownEntry(uid=0, euid=0, signum=0, pid_type=0, pid=0)


def save_path(dump: "Dump", subject: str, link: str, path: str, flags: int) -> int:
    """Enter a file that is known by a /proc link (`path`, e.g. /proc/1/exe, showing `link`) into files.img.

    Equal file and flags give the same id.  `flags`: how it is to be opened, O_RDONLY or O_RDWR.  Raises Refusal.
    """
    stat = os.stat(path)
    known: dict[tuple[int, int, int, str], int] = dump.setdefault("regular:paths", {})
    key = (stat.st_dev, stat.st_ino, flags, link)
    if key not in known:
        known[key] = id = dump.new_file_id()
        dump.file_entries.append(file_entry(dump, subject, id, link, stat, flags, 0, no_owner()))
    return known[key]


def file_entry(
    dump: "Dump", subject: str, id: int, link: str, stat: os.stat_result, flags: int, pos: int, owner: FownEntry
) -> FileEntry:
    name = link
    try:
        there = os.stat(name)
        same = (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
    except OSError:
        same = False
    if not same:
        raise Refusal(f"{subject} ({link})", "the file's name is gone, or leads to another file", "")
    reg = RegFileEntry(
        id=id,
        flags=flags,
        pos=pos,
        fown=owner,
        name=name,
        size=stat.st_size if st.S_ISREG(stat.st_mode) else None,
        mode=stat.st_mode,
    )
    return FileEntry(type=REG, id=id, reg=reg)


class Regular(FileKind):
    covers = frozenset({"fd:regular", "fd:directory", "fd:symlink", "fd:device"})
    type = REG

    def save(self, seen: "SeenFile", dump: "Dump") -> FileEntry:
        return file_entry(
            dump, seen.subject, seen.id, seen.link, seen.stat, seen.info.status_flags, seen.info.pos, no_owner()
        )


    # -- restore ------------------------------------------------------------------------------------------------------
    def make(self, entry: FileEntry, restore: "Restore") -> int:
        reg = entry.reg
        assert reg is not None
        never = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_ASYNC
        fd = os.open(reg.name, reg.flags & ~never | os.O_NOCTTY | os.O_CLOEXEC)
        if reg.pos:
            os.lseek(fd, reg.pos, os.SEEK_SET)
        return fd


FILE_KINDS: list[FileKind] = [Regular()]
