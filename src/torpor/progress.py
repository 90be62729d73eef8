# SPDX-License-Identifier: Apache-2.0
"""Progress on long work, for people: bytes, rate and time left on one line of a terminal; nothing anywhere else.

A terminal can stop at any time (Ctrl-S, a slow line, an emulator that is being dumped), and waiting for it would stop
the dump.  So the line is drawn through a description of our own that does not block, and a line that does not fit is
left out.  While a tree is frozen (`torpor.log.held`) nothing is drawn at all, unless the caller knows that the terminal
is not served by the tree.
"""

import os
import time

from torpor import log
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

INTERVAL = 0.2  # seconds between two lines
PATIENCE = 0.5  # seconds of work before the first one: what is done sooner needs no line


def quantity(count: float) -> str:
    """A number of bytes in words: 1.02 GiB."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        del units[0]
    digits = 0 if units[0] == "bytes" or count >= 100 else 1 if count >= 10 else 2
    return f"{count:.{digits}f} {units[0]}"


def duration(seconds: float) -> str:
    """A time in words: 12 ms, 0.31 s, 4 min 10 s."""
    if seconds < 0.1:
        return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 1}f} ms"
    if seconds < 60:
        return f"{seconds:.{2 if seconds < 10 else 1}f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


class Progress:
    """``with Progress("writing memory", total) as progress: … progress.add(n)``; `total` 0 if it is not known."""

    def __init__(self, what: str, total: int, *, fd: int = 2, terminal_is_safe: bool = False) -> None:
        self.what, self.total, self.done = what, total, 0
        self._safe = terminal_is_safe
        self._start = time.monotonic()
        self._next = self._start + PATIENCE
        self._width = 0
        self._fd = -1
        if log.level > log.NOTHING and os.isatty(fd):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:
                pass  # a terminal of another user or of a place that we cannot see: no line

    def add(self, count: int) -> None:
        self.done += count
        if self._fd >= 0 and time.monotonic() >= self._next:
            self._draw()

    def close(self) -> None:
        """Take the line away."""
        if self._fd >= 0:
            if self._width:
                self._put("\r" + " " * self._width + "\r")
            os.close(self._fd)
            self._fd = -1

    def line(self, seconds: float) -> str:
        """The line after so many seconds of work."""
        if not self.total and not self.done:
            return f"{self.what}: {duration(seconds)}"
        rate = self.done / seconds if seconds > 0 else 0
        parts = [quantity(self.done), f"{quantity(rate)}/s"]
        if self.total:
            parts[0] += f" of {quantity(self.total)}"
            if rate:
                parts.append(f"{duration(max(self.total - self.done, 0) / rate)} left")
        return f"{self.what}: {', '.join(parts)}"

    def _draw(self) -> None:
        now = time.monotonic()
        self._next = now + INTERVAL
        if log.held() and not self._safe:
            return
        line = self.line(now - self._start)
        if self._put("\r" + line.ljust(self._width)):
            self._width = len(line)

    def _put(self, words: str) -> bool:
        try:
            return os.write(self._fd, words.encode()) > 0
        except OSError:
            return False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        self.close()


class Meter:
    """One line for stages that come one after the other; `visible`: whether anybody would see it."""

    def __init__(self) -> None:
        self.visible = log.level > log.NOTHING and os.isatty(2)
        self._progress: Progress | None = None

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
