# SPDX-License-Identifier: Apache-2.0
"""Build ids: what tells one build of a program or library from another of the same name and size.

The linker puts an identifier into an ELF note, .note.gnu.build-id (elf(5), PT_NOTE).  CRIU's images hold it as words
in the machine's order, and both tools refuse to restore a program over files of another build.
"""

import os
import struct

from torpor.kernel import file_facts

MAGIC = b"\x7fELF"
PT_NOTE, NT_GNU_BUILD_ID = 4, 3
MAX_HEADERS, MAX_NOTE, MAX_ID = 512, 1 << 16, 64


def of_path(path: str, inode: tuple[int, int] | None = None) -> list[int]:
    """The build id of the file at `path`; empty if it has none, cannot be read or (`inode`) is another file by now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        if inode is not None:
            stat = file_facts.fstat(fd)
            if (stat.st_dev, stat.st_ino) != inode:
                return []
        return of_file(fd)
    except OSError:
        return []
    finally:
        os.close(fd)


def of_file(fd: int) -> list[int]:
    """The build id of an open file, as words.  OSError where it cannot be read."""
    head = os.pread(fd, 64, 0)
    if head[:4] != MAGIC or len(head) < 52:
        return []
    order = {1: "<", 2: ">"}.get(head[5], "")
    wide = head[4] == 2
    if not order or (wide and len(head) < 64):
        return []
    if wide:
        (start,) = struct.unpack_from(f"{order}Q", head, 32)
        size, count = struct.unpack_from(f"{order}HH", head, 54)
        fields, where = f"{order}IIQQQQQQ", (2, 5)
    else:
        (start,) = struct.unpack_from(f"{order}I", head, 28)
        size, count = struct.unpack_from(f"{order}HH", head, 42)
        fields, where = f"{order}IIIIIIII", (1, 4)
    if size < struct.calcsize(fields) or count > MAX_HEADERS or start >= 1 << 62:
        return []
    table = os.pread(fd, size * count, start)
    for at in range(0, len(table) - size + 1, size):
        header = struct.unpack_from(fields, table, at)
        offset, length = header[where[0]], header[where[1]]
        if header[0] == PT_NOTE and length <= MAX_NOTE and offset < 1 << 62:
            found = _in_notes(os.pread(fd, length, offset), order)
            if found:
                words = len(found) // 4
                return list(struct.unpack_from(f"={words}I", found))
    return []


def _in_notes(notes: bytes, order: str) -> bytes:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(f"{order}III", notes, at)
        name_at = at + 12
        content_at = name_at + (name_size + 3 & ~3)
        if kind == NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0" and 0 < size <= MAX_ID:
            return notes[content_at : content_at + size]
        at = content_at + (size + 3 & ~3)
    return b""
