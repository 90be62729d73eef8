# SPDX-License-Identifier: Apache-2.0
"""The log: CRIU's levels and timestamps, a file or stderr, and silence while a tree is frozen.

Between freeze and thaw nothing may be written outside the images: stderr, a log pipe, a terminal or a FUSE directory
may be served by the very tree that is frozen, and the write would wait for ever.  So `hold()` keeps messages in memory
and `release()` writes them out, each with the time at which it happened.

The module has one log, because there is one dump or restore at a time in a process.  In a host program that uses the
library it discards everything until `opened()` is entered with a file.  The engine's process inherits it: both write
whole lines to one O_APPEND description.  A log that cannot be written (full disk, closed pipe) never fails the work.
"""

import os
import time
from errno import ENXIO

from torpor.errors import TorporError, clean

NOTHING, ERROR, WARNING, INFO, DEBUG, CALLS = range(6)
_PREFIX = {ERROR: "Error: ", WARNING: "Warn: "}

level = NOTHING  # what is more than this is dropped; look here before building a costly message
_fd = -1
_start = time.monotonic()
_held: list[bytes] | None = None


def error(message: str) -> None:
    _say(ERROR, message)


def warning(message: str) -> None:
    _say(WARNING, message)


def info(message: str) -> None:
    _say(INFO, message)


def infos(messages: "list[str]") -> None:
    for message in messages:
        info(message)


def debug(message: str) -> None:
    _say(DEBUG, message)


def call(message: str) -> None:
    """A system call that ran inside a task."""
    _say(CALLS, message)


def hold() -> None:
    """Write nothing from now on: the tree is about to be frozen."""
    global _held
    if _held is None:
        _held = []


def release() -> None:
    """The tree runs again: write what was held back."""
    global _held
    lines, _held = _held, None
    if lines:
        _write(b"".join(lines))


def held() -> bool:
    return _held is not None


class opened:
    """Log to `path` ("-": stdout), or else to stderr if that is wanted, at this level, until the block ends.

    The file is made, readable by its owner alone, before anything else can fail; TorporError if it cannot be.
    (A class: contextlib takes 3 ms to import, with what it imports.)
    """

    def __init__(self, path: str | None, verbosity: int, *, stderr: bool = False) -> None:
        self._path, self._verbosity, self._stderr = path, verbosity, stderr

    def __enter__(self) -> None:
        global level, _fd, _start
        path = self._path
        self._before = level, _fd, _start
        if path is not None and path != "-":
            # A FIFO that nobody reads is an error then, and does not keep us waiting for a reader.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            try:
                _fd = os.open(path, flags, 0o600)
            except OSError as reason:
                why = "nobody reads it" if reason.errno == ENXIO else os.strerror(reason.errno or 0)
                raise TorporError(f"cannot write the log to {path}", why,
                                  "choose another by -o or -W", code="no-log") from None  # fmt: skip
            os.set_blocking(_fd, True)
        else:
            _fd = os.dup(1 if path else 2) if path or self._stderr else -1
        level = self._verbosity if _fd >= 0 else NOTHING
        _start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        global level, _fd, _start
        release()
        if _fd >= 0:
            os.close(_fd)
        level, _fd, _start = self._before


def _say(importance: int, message: str) -> None:
    if importance > level:
        return
    stamp = ""
    if level >= INFO:
        seconds = time.monotonic() - _start
        stamp = f"({int(seconds):02}.{int(seconds % 1 * 1e6):06}) "
    if not message.isprintable():
        message = "\n".join(map(clean, message.split("\n")))  # a traceback has several lines
    line = f"{stamp}{_PREFIX.get(importance, '')}{message}\n".encode()
    if _held is None:
        _write(line)
    else:
        _held.append(line)


def _write(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(_fd, data) :]
    except OSError:
        pass  # nowhere left to say so
