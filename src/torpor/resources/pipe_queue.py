# SPDX-License-Identifier: Apache-2.0
"""What is inside a pipe or FIFO: looked at without taking it out, and put in again.  pipe(7), tee(2).

tee(2) duplicates references to a pipe's buffers into another pipe, so the original's content, and who polls it, are
left alone; from the duplicate it is read.  Surprising facts:

- tee needs a reading end.  Where the tree has none (all readers closed, content left), one is opened through
  /proc/self/fd and closed again: nobody sees it while everything is frozen.
- Buffers are counted, not bytes: a pipe of 16 buffers is full with 16 bytes if each came alone.  So the duplicate must
  be as large as the original, or tee takes a part only.  An unprivileged pipe is at most pipe-max-size; one that is
  larger is refused if it cannot be looked at as a whole.
- In packet mode (O_DIRECT) every write, up to a page, is a packet, and one read never gives two.  A duplicate keeps
  that.  CRIU refuses such pipes, its format has no boundaries; the lengths go into torpor-files.img.
- Whether the last piece is a packet, only what is written behind it tells: it comes in a read of its own then.  The
  flag O_DIRECT does not tell: it may have changed since, and pipe2(2) sets it for the writing end alone.
"""

import fcntl
import os
import sys
import termios

from torpor.errors import RestoreFailed
from torpor.kernel.syscall import call
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.resources.context import Dump, SeenFile

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
FIONREAD = termios.FIONREAD
SPLICE_F_NONBLOCK = 2
PAGE = os.sysconf("SC_PAGE_SIZE")
_AT_ONCE = 1 << 20


class Queue(NamedTuple):
    """Capacity, content, and the lengths of what one read gives at a time.  packet: whether the last of these is a
    packet (all before it are); None: not known."""

    size: int
    data: bytes
    pieces: tuple[int, ...]
    packet: bool | None = None


class Scratch:
    """The pipe that contents are duplicated into; one for the whole dump, as large as the largest so far."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.size = fcntl.fcntl(self.writer, F_GETPIPE_SZ)

    def grow(self, size: int) -> None:
        """Room for so much, and for a mark behind it."""
        for wanted in (2 * size, size):
            if wanted <= self.size:
                return
            try:
                self.size = fcntl.fcntl(self.writer, F_SETPIPE_SZ, wanted)
                return
            except OSError:
                pass  # beyond pipe-max-size; what it holds may still fit

    def take(self, copied: int) -> tuple[bytes, tuple[int, ...], bool | None]:
        """All that was duplicated, how it came, and whether the last of it is a packet (None: no room for a mark)."""
        try:
            marked = os.write(self.writer, b"\0")
        except BlockingIOError:
            marked = 0
        pieces: list[bytes] = []
        left = copied + marked
        while left:
            pieces.append(os.read(self.reader, min(left, _AT_ONCE)))
            left -= len(pieces[-1])
        if not marked:
            return b"".join(pieces), tuple(map(len, pieces)), None
        apart = len(pieces[-1]) == 1
        pieces[-1:] = () if apart else [pieces[-1][:-1]]
        return b"".join(pieces), tuple(map(len, pieces)), apart and bool(pieces) and len(pieces[-1]) <= PAGE


def scratch(dump: "Dump") -> Scratch:
    """The dump's own scratch pipe; it ends with the process."""
    if "pipe scratch" not in dump.state:
        dump.state["pipe scratch"] = Scratch()
    found: Scratch = dump.state["pipe scratch"]
    return found


def bytes_in(fd: int) -> int:
    """How much nobody has read yet."""
    count = bytearray(4)
    fcntl.ioctl(fd, FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


def look(dump: "Dump", seen: "SeenFile") -> Queue:
    """The content of the pipe behind a description, which stays where it is.  Raises Refusal, OSError."""
    size = fcntl.fcntl(seen.fd, F_GETPIPE_SZ)
    pending = bytes_in(seen.fd)
    if not pending:
        return Queue(size, b"", ())
    own = scratch(dump)
    own.grow(size)
    reader = seen.fd
    if seen.info.status_flags & os.O_ACCMODE == os.O_WRONLY:
        reader = os.open(f"/proc/self/fd/{seen.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        copied = call("tee", reader, own.writer, max(pending, PAGE), SPLICE_F_NONBLOCK)
    finally:
        if reader != seen.fd:
            os.close(reader)
    data, pieces, packet = own.take(copied)
    if copied != pending:
        raise seen.refusal(
            f"only {copied} of the {pending} bytes in it could be looked at",
            "raise /proc/sys/fs/pipe-max-size to the pipe's size, or let the program read it first",
        )
    return Queue(size, data, pieces, packet)


def fill(descriptor: int, queue: Queue, packets: list[int], what: str) -> None:
    """Set the capacity of an empty pipe and put the content in, through any descriptor of it.  `queue.packet` False:
    the last of `packets` is none.  Raises RestoreFailed."""
    writer = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if queue.size and fcntl.fcntl(writer, F_GETPIPE_SZ) != queue.size:
            _resize(writer, queue.size, what)
        at = 0
        for length in packets or [len(queue.data)]:
            # A piece longer than a page was no packet.
            packet = bool(packets) and length <= PAGE and not (queue.packet is False and at + length == len(queue.data))
            fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if packet else 0))
            _write(writer, queue.data[at : at + length], what)
            at += length
    finally:
        os.close(writer)


def _resize(fd: int, size: int, what: str) -> None:
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, size)
    except PermissionError:
        raise RestoreFailed(
            f"cannot give {what} its size of {size} bytes",
            "it is above the limit of this system",
            f"set /proc/sys/fs/pipe-max-size to {size} or more",
        ) from None


def _write(fd: int, data: bytes, what: str) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            raise RestoreFailed(f"cannot fill {what}", "the images hold more than fits into it") from None
