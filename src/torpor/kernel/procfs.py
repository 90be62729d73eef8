# SPDX-License-Identifier: Apache-2.0
"""Raw reading of /proc: bytes in, bytes out, nothing in between.

These calls run while the victim is frozen, so they use os.open/os.read/os.close and no text layer.  Facts that shape
them:

- A file of /proc has no size (st_size is 0) and most are seq_files: one read() returns at most one buffer of whole
  records (4 KiB as a rule), however much is asked for.  The end is a read of 0 bytes, never a short one.
- When the task ends, open() says ENOENT, read() and write() on a file that is already open say ESRCH.
- ENOENT also means "this kernel has no such file" or "this task has none" (exe of a zombie), so it proves nothing
  about the task.
"""

import errno
import os

from torpor.errors import Refusal, TorporError

CHUNK = 1 << 16
LARGE = 1 << 20


class ParseError(TorporError):
    """A file of /proc does not look as the kernel's documentation says (a newer or a patched kernel?)."""

    code = "odd-proc"

    def __init__(self, name: str, data: bytes) -> None:
        shown = data[:80].decode("ascii", "backslashreplace")
        super().__init__(f"cannot read {name} of this kernel", f"did not expect {shown!r}")


def read_link(where: str, path: str, dir_fd: int | None = None) -> str:
    """Where a link of /proc leads.  Raises Refusal for what `where` names if the kernel cannot tell."""
    try:
        return os.readlink(path, dir_fd=dir_fd)
    except OSError as error:
        raise unreadable(error, where) from None


def unreadable(error: OSError, where: str) -> Exception:
    """What to raise after a failed readlink(2) of a link of /proc."""
    if error.errno != errno.ENAMETOOLONG:  # d_path in fs/d_path.c has one page for it
        return error
    return Refusal(where, "its path is longer than 4,095 bytes", "rename one of the directories above it")


def read_fd(fd: int, size: int = CHUNK) -> bytes:
    """All of `fd` from its position on; `size` is the first guess at how much there is."""
    data = os.read(fd, size)
    if not data:
        return data
    more = os.read(fd, size)
    if not more:
        return data
    parts = [data]
    while more:
        parts.append(more)
        more = os.read(fd, size)
    return b"".join(parts)


def read_all(path: str, size: int = CHUNK) -> bytes:
    """The whole content of the file at `path`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_fd(fd, size)
    finally:
        os.close(fd)


def read_at(dir_fd: int, name: str, size: int = CHUNK) -> bytes:
    """The whole content of the file `name` in the directory `dir_fd`."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return read_fd(fd, size)
    finally:
        os.close(fd)


_FAR = 1 << 63


def read_memory(fd: int, length: int, address: int) -> bytes:
    """pread(2) of a file /proc/PID/mem.  Up from 2^63, where only programs on s390x have memory, that call takes no
    offset; lseek(2) does, by which threads must not share the descriptor."""
    if address < _FAR:
        return os.pread(fd, length, address)
    _seek(fd, address)
    return os.read(fd, length)


def write_memory(fd: int, data: bytes, address: int) -> int:
    """pwrite(2), as `read_memory`."""
    if address < _FAR:
        return os.pwrite(fd, data, address)
    _seek(fd, address)
    return os.write(fd, data)


def _seek(fd: int, address: int) -> None:
    from torpor.kernel.syscall import call  # os.lseek takes the large offset that it gets for a failure

    if address >> 64:
        raise OSError(errno.EIO, f"no address: {address:#x}")
    call("lseek", fd, address - (1 << 64), os.SEEK_SET)
