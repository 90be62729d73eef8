# SPDX-License-Identifier: Apache-2.0
"""ioctl(2) on terminals: ioctl_tty(2), with the numbers that Python's termios module lacks.

A pseudo-terminal has one set of modes and one window size; both ends show them.  Asked through its master, a terminal
also tells session and foreground group, which a slave tells only to members of that session.
"""

import fcntl
import os
import struct
import termios

from torpor.arch import native
from torpor.images.schema.tty import TermiosEntry, WinsizeEntry
from torpor.kernel.ioctls import io, ior, iow

PPC = os.uname().machine.startswith("ppc")


TIOCGPTN, TIOCGDEV, TIOCGPKT, TIOCGPTLCK, TIOCGEXCL = (ior("T", number, 4) for number in (48, 50, 56, 57, 64))
TIOCSPTLCK = iow("T", 49, 4)
TIOCGPTPEER = io("T", 65)
TIOCGSID = 0x5429
TIOCGLCKTRMIOS, TIOCSLCKTRMIOS = 0x5456, 0x5457
TIOCSCTTY, TIOCSPGRP, TIOCGPGRP = termios.TIOCSCTTY, termios.TIOCSPGRP, termios.TIOCGPGRP
FIONREAD = termios.FIONREAD
O_LARGEFILE = native().o_largefile

# struct termios2 has line discipline, control characters, speeds in this order; powerpc's struct termios is alike, but
# with the characters first.
_MODES = struct.Struct("=4I19sBII" if PPC else "=4IB19sII")
_GET, _SET = (
    (ior("t", 19, _MODES.size), iow("t", 20, _MODES.size))
    if PPC
    else (ior("T", 42, _MODES.size), iow("T", 43, _MODES.size))
)
_OLD = struct.Struct("=4IB19s")  # struct termios, of the locks
ICANON, ECHO = termios.ICANON, termios.ECHO
N_TTY = 0


class Modes:
    """struct termios2."""

    __slots__ = ("cc", "cflag", "iflag", "ispeed", "lflag", "line", "oflag", "ospeed")

    def __init__(
        self, iflag: int, oflag: int, cflag: int, lflag: int, line: int, cc: bytes, ispeed: int, ospeed: int
    ) -> None:
        self.iflag, self.oflag, self.cflag, self.lflag, self.line, self.cc = iflag, oflag, cflag, lflag, line, cc
        self.ispeed, self.ospeed = ispeed, ospeed

    @classmethod
    def get(cls, fd: int) -> "Modes":
        """Raises OSError EIO: the terminal is hung up."""
        fields = _MODES.unpack(fcntl.ioctl(fd, _GET, bytes(_MODES.size)))
        iflag, oflag, cflag, lflag, one, other, ispeed, ospeed = fields
        cc, line = (one, other) if PPC else (other, one)
        return cls(iflag, oflag, cflag, lflag, line, cc, ispeed, ospeed)

    def set(self, fd: int) -> None:
        middle = (self.cc, self.line) if PPC else (self.line, self.cc)
        flags = (self.iflag, self.oflag, self.cflag, self.lflag)
        fcntl.ioctl(fd, _SET, _MODES.pack(*flags, *middle, self.ispeed, self.ospeed))

    def but(self, **changes: int | bytes) -> "Modes":
        """A copy with some fields changed."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return Modes(**(values | changes))

    def entry(self) -> TermiosEntry:
        return TermiosEntry(
            c_iflag=self.iflag,
            c_oflag=self.oflag,
            c_cflag=self.cflag,
            c_lflag=self.lflag,
            c_line=self.line,
            c_ispeed=self.ispeed,
            c_ospeed=self.ospeed,
            c_cc=_words(self.cc),
        )

    @classmethod
    def of(cls, entry: TermiosEntry, now: "Modes") -> "Modes":
        """As an image has them; speeds that it lacks (CRIU's are 0) are as they are `now`."""
        return cls(
            entry.c_iflag,
            entry.c_oflag,
            entry.c_cflag,
            entry.c_lflag,
            entry.c_line & 0xFF,
            _characters(entry.c_cc),
            entry.c_ispeed or now.ispeed,
            entry.c_ospeed or now.ospeed,
        )


def _words(cc: bytes) -> list[int]:
    """CRIU's 19 words: the characters, four a word, are in the first 8."""
    return [*struct.unpack("=8I", cc.ljust(32, b"\0")), *(0,) * 11]


def _characters(words: list[int]) -> bytes:
    return struct.pack("=8I", *(words + [0] * 8)[:8])[:19]


def locks(fd: int) -> TermiosEntry:
    """Which modes cannot be changed (TIOCGLCKTRMIOS)."""
    iflag, oflag, cflag, lflag, line, cc = _OLD.unpack(fcntl.ioctl(fd, TIOCGLCKTRMIOS, bytes(_OLD.size)))
    return Modes(iflag, oflag, cflag, lflag, line, cc, 0, 0).entry()


def set_locks(fd: int, entry: TermiosEntry) -> None:
    values = (entry.c_iflag, entry.c_oflag, entry.c_cflag, entry.c_lflag, entry.c_line & 0xFF)
    fcntl.ioctl(fd, TIOCSLCKTRMIOS, _OLD.pack(*values, _characters(entry.c_cc)))


def window_size(fd: int) -> WinsizeEntry:
    row, column, x, y = struct.unpack("=4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    return WinsizeEntry(ws_row=row, ws_col=column, ws_xpixel=x, ws_ypixel=y)


def set_window_size(fd: int, size: WinsizeEntry) -> None:
    values = (value & 0xFFFF for value in (size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("=4H", *values))


def number(fd: int, request: int) -> int:
    """An ioctl that fills in an int."""
    return int(struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))[0])


def set_number(fd: int, request: int, value: int) -> None:
    """An ioctl that takes a pointer to an int."""
    fcntl.ioctl(fd, request, struct.pack("=i", value))


def open_slave(master: int, flags: int) -> int:
    """Open the other end, wherever it is mounted (4.13).  Raises OSError EIO: it is locked."""
    # Asked for O_CLOEXEC here, the kernel would also keep it among the flags that fdinfo shows.
    fd = fcntl.ioctl(master, TIOCGPTPEER, flags & ~os.O_CLOEXEC | os.O_NOCTTY)
    os.set_inheritable(fd, False)
    return fd
