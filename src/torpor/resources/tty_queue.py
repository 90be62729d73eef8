# SPDX-License-Identifier: Apache-2.0
"""What waits in a pseudo-terminal: typed and not read, written and not shown.  It can be looked at only by taking it
out and putting it back.

Typed: the line discipline of the slave holds it; whoever writes to the master types it again.  Written: whoever writes
to the slave writes it again.  Both with the modes set for the moment so that nothing is echoed, translated, erased or
turned into a signal.  Surprising facts:

- In canonical mode a read gives one line, and a line that was begun is not to be seen: only without ICANON.  Leaving
  and entering ICANON while something is queued makes one line of all of it, so it must be empty when that is done.
- The kernel hands over what was written later, in a work queue.  poll(2) on an empty terminal waits for it.
- In packet mode every read begins with a byte of status, so it is turned off while its master is read.
"""

import fcntl
import os
import select
import sys
import termios
import time

from torpor.resources.tty_calls import ECHO, FIONREAD, ICANON, TIOCGPKT, Modes, number, open_slave
from torpor.typed import NamedTuple

PATIENCE = 0.1  # seconds for the kernel's work queue
FULL = 4095  # what a line discipline takes
_CHUNK = 4096


class Queues(NamedTuple):
    """Bytes that the slave, and the master, are yet to read."""

    typed: bytes
    written: bytes


def look(master: int) -> Queues:
    """What is queued; it stays.  Raises OSError."""
    slave = _own_slave(master)
    if slave < 0:
        return Queues(b"", b"")
    try:
        modes = Modes.get(slave)
        found = Queues(_typed(slave, modes), _written(master))
        if found.typed or found.written:
            put(master, slave, found, modes)
        return found
    finally:
        os.close(slave)


def _own_slave(master: int) -> int:
    """A description of our own, that does not block."""
    try:
        return open_slave(master, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return -1  # locked: nobody has opened it yet


def _typed(slave: int, modes: Modes) -> bytes:
    _settle(slave)
    if not modes.lflag & ICANON:
        return _drain(slave)
    lines = _drain(slave)
    modes.but(lflag=modes.lflag & ~(ICANON | ECHO)).set(slave)
    try:
        return lines + _drain(slave)  # the line that was begun
    finally:
        modes.set(slave)


def _written(master: int) -> bytes:
    _settle(master)
    if not number(master, FIONREAD):
        return b""
    packets = number(master, TIOCGPKT)
    if packets:
        fcntl.ioctl(master, termios.TIOCPKT, _int(0))
    try:
        return _drain(master)
    finally:
        if packets:
            fcntl.ioctl(master, termios.TIOCPKT, _int(1))


def _int(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def _settle(fd: int) -> None:
    """Let the kernel hand over what is on its way."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(0)


def _drain(fd: int) -> bytes:
    """Read what is there; never blocks."""
    pieces = []
    while number(fd, FIONREAD):
        try:
            pieces.append(os.read(fd, _CHUNK))
        except OSError:  # EAGAIN, or EIO: the other end is closed
            break
        _settle(fd)
    return b"".join(pieces)


def put(master: int, slave: int, queues: Queues, modes: Modes) -> None:
    """Type and write again.  The slave has `modes` now and afterwards.  Raises OSError."""
    quiet = modes.but(iflag=0, oflag=0, lflag=modes.lflag & ICANON, cc=bytes(19))
    quiet.set(slave)
    try:
        if queues.written:
            _write(slave, queues.written)
            _await(master, len(queues.written))
        if queues.typed:
            lines = queues.typed.rpartition(b"\n")
            whole = len(queues.typed) if not modes.lflag & ICANON else len(lines[0]) + len(lines[1])
            _write(master, queues.typed)
            _await(slave, whole)
            if whole < len(queues.typed):
                time.sleep(0.002)  # nothing tells that the rest, a line that was begun, is through
    finally:
        modes.set(slave)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    deadline = time.monotonic() + PATIENCE
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def _await(fd: int, size: int) -> None:
    """Until so much can be read."""
    deadline = time.monotonic() + PATIENCE
    while number(fd, FIONREAD) < min(size, FULL) and time.monotonic() < deadline:
        _settle(fd)
        time.sleep(0.0002)
    _settle(fd)
