# SPDX-License-Identifier: Apache-2.0
"""Waiting for a task's answer while noticing everything else: its stops, and requests to give up.

The engine blocks SIGCHLD, SIGINT, SIGTERM and SIGHUP and reads them here, between two system calls of its own, so that
none ever lands between two register writes.
"""

import os
import select
import struct
import sys
from ctypes import addressof, create_string_buffer

from torpor import signals as signal
from torpor.engine import stops
from torpor.errors import TorporError
from torpor.kernel.syscall import call
from torpor.typed import Callable

SIGNALS = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGINFO = 128
_SFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK

_signal_fd = -1
_asked: "select.poll"  # for the signals and the front's end at once
_cancelled = 0


class Cancelled(TorporError):
    """A signal asked Torpor to stop; everything is put back."""

    code = "cancelled"


def setup(front_fd: int = -1) -> None:
    """To be called once in the engine process.  `front_fd` reads end-of-file when the front has died."""
    global _signal_fd, _asked
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a host may ignore it, and then nobody can wait for a child
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    stops.own_sigchld = True
    _signal_fd = open_signals(SIGNALS)
    _asked = select.poll()
    _asked.register(_signal_fd, select.POLLIN)
    if front_fd >= 0:
        _asked.register(front_fd, select.POLLIN)


def open_signals(numbers: tuple[int, ...]) -> int:
    """A non-blocking signalfd(2) of blocked signals."""
    mask = create_string_buffer(struct.pack("=Q", sum(1 << number - 1 for number in numbers)), 8)
    return call("signalfd4", -1, addressof(mask), 8, _SFD_FLAGS)


def _drain() -> None:
    global _cancelled
    try:
        data = os.read(_signal_fd, 16 * _SIGINFO)
    except BlockingIOError:
        return
    for at in range(0, len(data), _SIGINFO):
        number = int.from_bytes(data[at : at + 4], sys.byteorder)
        if number != signal.SIGCHLD:
            _cancelled = number


def check_cancelled() -> None:
    """A safe point.  Raises Cancelled once a signal or the front's death asked for it."""
    global _cancelled
    if _signal_fd < 0:
        return
    for fd, _ in _asked.poll(0):
        if fd == _signal_fd:
            _drain()
        elif not _cancelled:
            _cancelled = -1
    if _cancelled:
        why = "the front process died" if _cancelled < 0 else f"signal {signal.name_of(_cancelled)}"
        raise Cancelled("interrupted", why)


def forget_cancellation() -> None:
    """From here on the work is finished, whatever comes (cleaning up must not be cancelled)."""
    global _signal_fd
    if _signal_fd >= 0:
        os.close(_signal_fd)
    _signal_fd = -1


def is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def wait_readable(fd: int, on_child: Callable[[], None], timeout: float | None = None) -> bool:
    """Wait until `fd` is readable; call `on_child` when some child or tracee changed.  False: timed out."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if stops.soon(lambda: poller.poll(0) or None):
        return True
    on_child()  # a signal for this child may have been read while another was waited for
    if _signal_fd < 0:
        while not poller.poll(50 if timeout is None else min(50, timeout * 1000)):
            on_child()
            if timeout is not None:
                return False
        return True
    poller.register(_signal_fd, select.POLLIN)
    while True:
        ready = poller.poll(None if timeout is None else timeout * 1000)
        if not ready:
            return False
        if any(which == fd for which, _ in ready):
            return True
        _drain()
        on_child()
