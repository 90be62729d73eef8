# SPDX-License-Identifier: Apache-2.0
"""A signal frame as this kernel makes it on this CPU: what a moment's child gets, before its handler begins."""

import os

from torpor import signals as signal
from torpor.arch import native
from torpor.arch.base import NT_PRSTATUS, Frame
from torpor.engine import stops
from torpor.kernel import process, ptrace
from torpor.typed import Mapping

_LENGTH = 1 << 14


def make(registers: Mapping[int, bytes]) -> Frame | None:
    """`registers`: regsets that the child is to have.  None: it is not what `Arch.signal_frames` knows."""
    ready, tell = os.pipe2(os.O_CLOEXEC)
    pid = 0
    try:
        pid = process.fork_idle(signal.SIGUSR1, tell)
        os.close(tell)
        tell = -1
        os.read(ready, 1)
        ptrace.seize(pid, ptrace.O_EXITKILL)
        ptrace.interrupt(pid)
        os.waitpid(pid, stops.WALL)
        ptrace.set_signal_mask(pid, 0)
        for which, data in registers.items():
            ptrace.set_regset(pid, which, data)
        os.kill(pid, signal.SIGUSR1)
        ptrace.cont(pid)
        os.waitpid(pid, stops.WALL)  # the signal is about to be delivered
        ptrace.interrupt(pid)
        ptrace.cont(pid, signal.SIGUSR1)
        os.waitpid(pid, stops.WALL)  # it has been, and nothing has run since
        return _look(pid)
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, stops.WALL)
        for fd in (ready, tell):
            if fd >= 0:
                os.close(fd)


def _look(pid: int) -> Frame | None:
    arch = native()
    start = arch.sp(ptrace.get_regset(pid, NT_PRSTATUS))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        stack = os.pread(memory.fileno(), _LENGTH, start)

    def read(address: int, length: int) -> bytes:
        at = max(0, address - start)
        return stack[at : at + length].ljust(length, b"\0")

    return next(iter(arch.signal_frames(stack, start, read)), None)
