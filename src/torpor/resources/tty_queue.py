# SPDX-License-Identifier: Apache-2.0
"""What waits in a pseudo-terminal: typed and not read, written and not shown; and whether it is stopped (^S).  All that
can be looked at only by taking it out and putting it back.

Typed: the line discipline of the slave holds it; whoever writes to the master types it again.  Written: whoever writes
to the slave writes it again.  Both with the modes set for the moment so that nothing is echoed, translated, erased or
turned into a signal.  Surprising facts:

- In canonical mode a read gives one line, and a line that was begun is not to be seen: only without ICANON.  Leaving
  and entering ICANON while something is queued makes one line of all of it, so it must be empty when that is done.
- A line may end without a newline: by end of file (^D, then it may be empty), or by another character (VEOL).  Both
  come back as ended by end of file, which reads alike.  Others have newlines within, typed after VLNEXT.
- The kernel hands over what was written later, in a work queue.  poll(2) on an empty terminal waits for it.
- In packet mode every read begins with a byte of status, and every change of modes may leave one: so it is turned off
  meanwhile.  Turning it on forgets the status, so none may wait.
- A stopped terminal takes nothing that is written: poll(2) tells.  Stopped by VSTOP it goes on when IXON is turned off,
  stopped by TCOOFF (tcflow(3)) it does not; and it is VSTOP, or TCOOFF, that stops it again.  VSTOP may have been
  taken from it since: then it is given one for the moment.  What was still to be echoed is echoed meanwhile.
"""

import os
import select
import termios
import time

from torpor.kernel.polling import poll_events
from torpor.resources.tty_calls import ECHO, FIONREAD, ICANON, PPC, TIOCGPKT, Modes, number, open_slave, set_number
from torpor.typed import NamedTuple

PATIENCE = 0.1  # seconds for the kernel's work queue
FULL = 4095  # what a line discipline takes
BY_KEY, BY_CALL, MASTER = 1, 2, 4  # the slave's output is stopped by VSTOP, by TCOOFF; the master's by TCOOFF
_CHUNK = 4096
_EXTPROC = 0x10000000 if PPC else 0x10000
_EOF, _STOP, _LITERAL = 4, 19, 22  # control characters for the moment


class Queues(NamedTuple):
    """Bytes that the slave, and the master, are yet to read.  lines: in canonical mode, the lengths of the lines that
    are complete; None: each ends with a newline.  stopped: a mask."""

    typed: bytes
    written: bytes
    lines: tuple[int, ...] | None = None
    stopped: int = 0


def waiting_status(master: int) -> bool:
    """Whether a byte of status waits in packet mode."""
    return bool(number(master, TIOCGPKT)) and bool(_events(master) & select.POLLPRI)


def look(master: int) -> Queues:
    """What is queued; it stays.  Raises OSError."""
    slave = _own_slave(master)
    if slave < 0:
        return Queues(b"", b"")
    packets = number(master, TIOCGPKT)
    if packets:
        set_number(master, termios.TIOCPKT, 0)
    try:
        modes = Modes.get(slave)
        typed, lines = _typed(slave, modes)
        _settle(master)
        written = _drain(master)
        found = Queues(typed, written, None if lines == _lines(typed) else lines, _stopped(master, slave, modes))
        if found.typed or found.written or found.lines or found.stopped & BY_KEY:
            put(master, slave, found, modes)
        return found
    finally:
        os.close(slave)
        if packets:
            set_number(master, termios.TIOCPKT, 1)


def _own_slave(master: int) -> int:
    """A description of our own, that does not block."""
    try:
        return open_slave(master, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return -1  # locked: nobody has opened it yet


def _has_lines(modes: Modes) -> bool:
    return modes.lflag & (ICANON | _EXTPROC) == ICANON


def _typed(slave: int, modes: Modes) -> tuple[bytes, tuple[int, ...]]:
    """All, and the lengths of whole lines."""
    _settle(slave)
    if not _has_lines(modes):
        return _drain(slave), ()
    lines = []
    while _events(slave) & select.POLLIN:
        try:
            lines.append(os.read(slave, _CHUNK))
        except BlockingIOError:
            break
    modes.but(lflag=modes.lflag & ~(ICANON | ECHO)).set(slave)
    try:
        return b"".join(lines) + _drain(slave), tuple(map(len, lines))  # the line that was begun
    finally:
        modes.set(slave)


def _lines(typed: bytes) -> tuple[int, ...]:
    """The lengths of whole lines, if each ends with a newline."""
    return tuple(len(line) + 1 for line in typed.split(b"\n")[:-1])


def _stopped(master: int, slave: int, modes: Modes) -> int:
    """The queues are empty.  Stopped by VSTOP, it goes on."""
    found = 0 if _events(master) & select.POLLOUT else MASTER
    if not _events(slave) & select.POLLOUT:
        modes.but(iflag=modes.iflag & ~termios.IXON).set(slave)
        found |= BY_KEY if _events(slave) & select.POLLOUT else BY_CALL
        modes.set(slave)
    return found


def _events(fd: int) -> int:
    return poll_events(fd, select.POLLIN | select.POLLPRI | select.POLLOUT)


def _settle(fd: int) -> None:
    """Let the kernel hand over what is on its way."""
    _events(fd)


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
    """Type and write again, and stop it.  The slave has `modes` afterwards, and now.  Raises OSError."""
    if queues.stopped & BY_CALL:
        termios.tcflow(slave, termios.TCOON)
    if queues.stopped & MASTER:
        termios.tcflow(master, termios.TCOON)
    try:
        if queues.written or queues.typed or queues.lines:
            _put(master, slave, queues, modes)
    finally:
        modes.set(slave)
        _stop(master, slave, queues.stopped, modes)


def _put(master: int, slave: int, queues: Queues, modes: Modes) -> None:
    quiet = modes.but(iflag=0, oflag=0, lflag=modes.lflag & (ICANON | _EXTPROC), cc=bytes(19))
    quiet.set(slave)
    if queues.written:
        _write(slave, queues.written)
        _await(master, len(queues.written))
    if not _has_lines(modes):
        _write(master, queues.typed)
        _await(slave, len(queues.typed))
        return
    cc = bytearray(19)
    cc[termios.VEOF], cc[termios.VLNEXT] = _EOF, _LITERAL
    quiet.but(lflag=ICANON | termios.IEXTEN, cc=bytes(cc)).set(slave)
    keys, at = b"", 0
    for length in _lines(queues.typed) if queues.lines is None else queues.lines:
        line = queues.typed[at : at + length]
        keys += _literal(line[:-1]) + b"\n" if line.endswith(b"\n") else _literal(line) + bytes([_EOF])
        at += length
    _write(master, keys + _literal(queues.typed[at:]))
    _await(slave, at)
    if at < len(queues.typed) or queues.lines:
        time.sleep(0.002)  # nothing tells that the rest, a line that was begun or has no end to be counted, is through


def _literal(text: bytes) -> bytes:
    """As it has to be typed to be taken as it is."""
    return b"".join(bytes([_LITERAL, byte] if byte in (10, _EOF, _LITERAL) else [byte]) for byte in text)


def _stop(master: int, slave: int, stopped: int, modes: Modes) -> None:
    if stopped & BY_KEY:
        cc = bytearray(19)
        cc[termios.VSTOP] = _STOP
        modes.but(iflag=termios.IXON, lflag=modes.lflag & (ICANON | _EXTPROC), cc=bytes(cc)).set(slave)
        os.write(master, bytes([_STOP]))
        deadline = time.monotonic() + PATIENCE
        while _events(slave) & select.POLLOUT and time.monotonic() < deadline:
            time.sleep(0.0002)
        modes.set(slave)
    if stopped & BY_CALL:
        termios.tcflow(slave, termios.TCOOFF)
    if stopped & MASTER:
        termios.tcflow(master, termios.TCOOFF)


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
