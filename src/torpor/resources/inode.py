# SPDX-License-Identifier: Apache-2.0
"""What an inode has besides content, owner, mode and times, of files that come back as new ones: ghosts and memfds.

Extended attributes (xattr(7)), access control lists among them, the flags of chattr(1) (ioctl_iflags(2)), and for how
long what is written will live (F_SET_RW_HINT, fcntl(2)).  CRIU's images have no place for these.  Surprising facts:

- Labels of security modules and the hashes of integrity measurement are attributes, too, but the kernel gives them to
  new files by itself, and some it lets nobody set.
- A file that is immutable, or only to be appended to, can be a ghost: these flags may come after its last name went.
  It could not be opened for writing any more when it has them back, so it is refused.
"""

import fcntl
import os
import struct
import sys

from torpor.errors import KernelError, Refusal, clean
from torpor.kernel.ioctls import ior, iow
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.torpor_file import TorporFileEntry

F_GET_RW_HINT, F_SET_RW_HINT = 1035, 1036
_LONG = struct.calcsize("l")
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = ior("f", 1, _LONG), iow("f", 2, _LONG)
_FIXED = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL
KEPT = 0x8 | 0x40 | 0x80 | 0x4000 | 0x10000  # FS_SYNC_FL, NODUMP, NOATIME, JOURNAL_DATA, DIRSYNC
_NAMES = ("user.", "trusted.", "system.posix_acl_", "btrfs.")
_CAPABILITY = "security.capability"
_HINTS = range(6)
_LONGEST = 1 << 16  # bytes of an attribute


def save(own: "TorporFileEntry", subject: str, path: str, fd: int) -> None:
    """Enter what the file at `path`, in /proc, has.  fd: to read it by, or -1: it cannot be opened.  Raises Refusal."""
    try:
        names = os.listxattr(path)
    except OSError:
        names = []  # its file system has none
    for name in names:
        if _is_kept(name):
            own.attribute_names.append(os.fsencode(name))
            own.attribute_values.append(os.getxattr(path, name))
    if fd < 0:
        return
    flags = _flags(fd)
    if flags & _FIXED:
        why = "the file was deleted, and is immutable or only to be appended to (chattr)"
        raise Refusal(subject, why, "take these flags away first")
    if flags & KEPT:
        own.inode_flags = flags & KEPT
    try:
        hint = int.from_bytes(fcntl.fcntl(fd, F_GET_RW_HINT, bytes(8)), sys.byteorder)
    except OSError:
        hint = 0
    if hint:
        own.write_hint = hint


def _is_kept(name: str) -> bool:
    return name.startswith(_NAMES) or name == _CAPABILITY


def are_possible(own: "TorporFileEntry") -> bool:
    """Whether `save` may have entered this."""
    return (
        len(own.attribute_names) == len(own.attribute_values)
        and all(_is_kept(os.fsdecode(name)) for name in own.attribute_names)
        and all(len(name) < 256 and b"\0" not in name for name in own.attribute_names)
        and all(len(value) <= _LONGEST for value in own.attribute_values)
        and (own.write_hint or 0) in _HINTS
        and not (own.inode_flags or 0) & ~KEPT
    )


class InodeRefused(KernelError):
    """What an inode has and cannot get.  `has`: that, in words."""

    def __init__(self, path: str, has: str, error: OSError) -> None:
        self.has = has
        file = clean(os.readlink(path))
        super().__init__(f"{file} cannot come back as it was ({has})", error, "restore it where it was dumped")


def restore(own: "TorporFileEntry", path: str, fd: int) -> None:
    """When it has its content, owner and mode; fd: -1 where `save` had none.  Raises InodeRefused."""
    has = ""
    try:
        for name, value in zip(own.attribute_names, own.attribute_values, strict=True):
            has = f"it has the extended attribute {os.fsdecode(name)}"
            os.setxattr(path, name, value)
        if fd < 0:
            return
        if own.inode_flags:
            has = f"it has attributes ({own.inode_flags:#x}, chattr)"
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=i", _flags(fd) | own.inode_flags).ljust(_LONG, b"\0"))
        if own.write_hint:
            has = f"what is written to it lives for a time that it knows ({own.write_hint}, F_SET_RW_HINT)"
            fcntl.fcntl(fd, F_SET_RW_HINT, struct.pack("=Q", own.write_hint))
    except OSError as error:
        raise InodeRefused(path, has, error) from None


def _flags(fd: int) -> int:
    """0 where the file system has no such flags.  (It fills in an int, whatever the number of the request says.)"""
    try:
        return int(struct.unpack_from("=i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(_LONG)))[0])
    except OSError:
        return 0
