# SPDX-License-Identifier: Apache-2.0
"""The guardian: tidies up in tasks whose engine was killed.

A task goes home by itself when the engine dies, but it cannot unmap the page that its way home leads over.  The
guardian, a process of its own that does nothing else, is told every area that the engine maps into a task.  When the
engine's end of the pipe closes and areas are left, it waits until their tasks are home, and unmaps them.
"""

import os
import signal
import struct
import time

from torpor.engine import stops
from torpor.engine.stops import Kind
from torpor.engine.tracee import Tracee
from torpor.errors import TorporError
from torpor.kernel import ptrace

_MESSAGE = struct.Struct("=QQQ")  # PID, address, bytes; 0 bytes: it is gone
_PATIENCE_S = 15.0  # the executor waits for the engine ten seconds at most
_PAUSE_S = 0.005


class Guardian:
    """The engine's side."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid, self._fd = pid, fd

    @classmethod
    def start(cls) -> "Guardian":
        """Fork the guardian.  To be called before the freeze."""
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                os.setsid()
                _guard(theirs)
            finally:
                os._exit(0)
        os.close(theirs)
        return cls(pid, ours)

    def watch(self, pid: int, address: int, size: int) -> None:
        """An area was mapped into process `pid`."""
        os.write(self._fd, _MESSAGE.pack(pid, address, size))

    def forget(self, pid: int, address: int) -> None:
        """It was unmapped again."""
        os.write(self._fd, _MESSAGE.pack(pid, address, 0))

    def finish(self) -> None:
        """Everything is put back, or ended: let the guardian go."""
        os.write(self._fd, _MESSAGE.pack(0, 0, 0))
        os.close(self._fd)
        os.waitpid(self.pid, 0)


def _guard(fd: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _close_all_but(fd)
    areas: dict[tuple[int, int], int] = {}
    data = b""
    while chunk := os.read(fd, 1 << 16):
        data += chunk
        whole = len(data) // _MESSAGE.size * _MESSAGE.size
        for pid, address, size in _MESSAGE.iter_unpack(data[:whole]):
            if not pid:
                return
            if size:
                areas[pid, address] = size
            else:
                areas.pop((pid, address), None)
        data = data[whole:]
    deadline = time.monotonic() + _PATIENCE_S
    while areas and time.monotonic() < deadline:
        for (pid, address), size in list(areas.items()):
            if _tidy(pid, address, size):
                del areas[pid, address]
        time.sleep(_PAUSE_S)


def _close_all_but(fd: int) -> None:
    """Hold nothing of the engine's: an image directory could not be unmounted, a pipe would not see its end."""
    from torpor.kernel.process import close_range

    if fd:
        close_range(0, fd - 1)
    close_range(fd + 1)


def _tidy(pid: int, address: int, size: int) -> bool:
    """Unmap an area if nobody runs in it any more.  False: try again."""
    try:
        ptrace.seize(pid, ptrace.O_TRACESYSGOOD)
    except ProcessLookupError:
        return True
    except PermissionError:
        return not os.path.exists(f"/proc/{pid}")  # still traced by the dying engine
    tracee = Tracee(pid, pid)
    try:
        ptrace.interrupt(pid)
        while (stop := stops.wait(pid)).kind not in (Kind.INTERRUPTED, Kind.GROUP_STOP):
            if stop.kind is Kind.ENDED:
                return True
            ptrace.cont(pid, stop.signal if stop.kind is Kind.SIGNAL else 0)
        # rt_sigreturn takes the frame that lies in the area, so its stack pointer counts too.
        places = tracee.arch.pc(tracee.general), tracee.arch.sp(tracee.general)
        home = not any(address <= place < address + size for place in places)
        if home:
            tracee.block_signals()
            tracee.step("munmap", address, size)
        tracee.let_go()
        return home
    except (OSError, TorporError):
        return True
