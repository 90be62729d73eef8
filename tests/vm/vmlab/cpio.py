# SPDX-License-Identifier: Apache-2.0
"""A writer of cpio archives (format "newc"), which is what an initramfs is.

The kernel unpacks several archives one after the other when each begins at a multiple of four bytes, so that what
seldom changes is packed once.  Neither root nor cpio(1) is needed to put device nodes into one.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO


class CpioWriter:
    """Writes entries to `file`; parents of a file are made as needed, everything belongs to root."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inode = 0
        self._directories: set[str] = set()

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._file.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

    def directory(self, name: str) -> None:
        """A directory and its parents."""
        if name and name not in self._directories:
            self.directory(os.path.dirname(name))
            self._entry(name, stat.S_IFDIR | 0o755)
            self._directories.add(name)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self.directory(os.path.dirname(name))
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self.directory(os.path.dirname(name))
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, mode: int, major: int, minor: int) -> None:
        """A character device."""
        self.directory(os.path.dirname(name))
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def tree(self, top: Path, prefix: str = "") -> None:
        """Everything below `top`, its names put after `prefix`."""
        for path in sorted(top.rglob("*")):
            name = prefix + str(path.relative_to(top))
            if path.is_symlink():
                self.link(name, os.readlink(path))
            elif path.is_dir():
                self.directory(name)
            elif path.is_file():
                self.file(name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def close(self) -> None:
        """Write the trailer and pad, so that another archive can follow.  Leaves the file open."""
        self._entry("TRAILER!!!", 0)
        self._file.write(bytes(-self._file.tell() % 512))
