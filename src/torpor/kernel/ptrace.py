# SPDX-License-Identifier: Apache-2.0
"""ptrace(2), typed.  Every function raises OSError; ESRCH means that the task is gone *or is not stopped*.

ptrace belongs to the thread that attached: all of this is called from one thread of one process (see engine/).
Facts: ptrace(2), include/uapi/linux/ptrace.h of Linux 6.12.
"""

import ctypes
import errno
import os
import struct

from torpor.typed import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long

CONT, KILL, SINGLESTEP, DETACH, SYSCALL = 7, 8, 9, 17, 24
GET_THREAD_AREA, GET_THREAD_AREA_X86 = 22, 25
SETOPTIONS, GETSIGINFO = 0x4200, 0x4202
GETREGSET, SETREGSET, SEIZE, INTERRUPT = 0x4204, 0x4205, 0x4206, 0x4207
LISTEN, PEEKSIGINFO, GETSIGMASK, SETSIGMASK = 0x4208, 0x4209, 0x420A, 0x420B
GET_SYSCALL_INFO, GET_RSEQ_CONFIGURATION = 0x420E, 0x420F
GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211

SYS_USER_DISPATCH = 2  # si_code of a SIGSYS

O_TRACESYSGOOD, O_TRACEFORK, O_TRACEVFORK, O_TRACECLONE, O_TRACEEXEC, O_TRACEEXIT = 1, 2, 4, 8, 16, 64
O_EXITKILL, O_SUSPEND_SECCOMP = 1 << 20, 1 << 21

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_EXIT, EVENT_STOP = 1, 2, 3, 4, 6, 128

NT_386_IOPERM = 0x201
PEEKSIGINFO_SHARED = 1
SIGINFO_SIZE = 128
_REGSET_MAX = (1 << 16) + 4096  # SME's array has 64 KiB at most, AMX makes an XSTATE of 11


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_buffer = ctypes.create_string_buffer(_REGSET_MAX)
_buffer_at = ctypes.addressof(_buffer)
# Of x86_64 (asm/segment.h, asm/ldt.h): where the GDT has entries of a thread's own, and what is told of one that is
# not used: number, base, limit; not present, not to be written.
_GDT_TLS = [(number, _buffer_at + 16 * at) for at, number in enumerate(range(12, 15))]
_NO_SEGMENTS = b"".join(struct.pack("<4I", number, 0, 0, 0x28) for number, _ in _GDT_TLS)
_iov = _Iovec()
_iov_at = ctypes.addressof(_iov)


def request(what: int, tid: int, addr: int = 0, data: int = 0) -> int:
    """One ptrace request; `addr` and `data` are numbers or addresses.  Raises OSError."""
    result: int = _ptrace(what, tid, addr, data)
    if result == -1:
        number = ctypes.get_errno()
        if number:
            raise OSError(number, os.strerror(number))
    return result


def seize(tid: int, options: int) -> None:
    """Attach without stopping.  EPERM: traced already, or no rights."""
    request(SEIZE, tid, 0, options)


def interrupt(tid: int) -> None:
    request(INTERRUPT, tid)


def cont(tid: int, signal: int = 0) -> None:
    request(CONT, tid, 0, signal)


def cont_to_call(tid: int, signal: int = 0) -> None:
    """Run to the next entry to, or exit from, a system call."""
    request(SYSCALL, tid, 0, signal)


def step(tid: int, signal: int = 0) -> None:
    """Run one instruction.  EIO where the machine cannot (32-bit ARM).  The trap is forced: one that is blocked or
    ignored makes the kernel forget the task's disposition of SIGTRAP."""
    request(SINGLESTEP, tid, 0, signal)


def listen(tid: int) -> None:
    """Leave a task in group-stop while waiting for events."""
    request(LISTEN, tid)


def detach(tid: int, signal: int = 0) -> None:
    request(DETACH, tid, 0, signal)


def set_options(tid: int, options: int) -> None:
    request(SETOPTIONS, tid, 0, options)


def get_regset(tid: int, which: int) -> bytes:
    """One register set, as long as this CPU and this task have it."""
    _iov.base, _iov.length = _buffer_at, _REGSET_MAX
    request(GETREGSET, tid, which, _iov_at)
    return _buffer.raw[: _iov.length] if _iov.length > 4096 else ctypes.string_at(_buffer_at, _iov.length)


def set_regset(tid: int, which: int, data: bytes) -> None:
    """Set a register set.  EFAULT where `data` is shorter than the CPU's (x86 XSTATE)."""
    ctypes.memmove(_buffer_at, data, len(data))
    _iov.base, _iov.length = _buffer_at, len(data)
    request(SETREGSET, tid, which, _iov_at)


def thread_area(tid: int) -> bytes:
    """The thread pointer, where it is no regset (PTRACE_GET_THREAD_AREA of 32-bit ARM): one word."""
    request(GET_THREAD_AREA, tid, 0, _buffer_at)
    return ctypes.string_at(_buffer_at, ctypes.sizeof(ctypes.c_long))


def has_gdt_entries(tid: int) -> bool:
    """Whether a thread of x86_64 has put segments into the GDT, as only a call of 32-bit programs does
    (set_thread_area).  A kernel without that says no.  Quick: a thousand threads may be asked."""
    failed = 0
    for number, at in _GDT_TLS:
        failed |= _ptrace(GET_THREAD_AREA_X86, tid, number, at)
    return not failed and ctypes.string_at(_buffer_at, len(_NO_SEGMENTS)) != _NO_SEGMENTS


def has_io_bitmap(tid: int) -> bool:
    """Whether a thread of x86 may use some I/O ports (ioperm); a kernel without that says no."""
    _iov.base, _iov.length = _buffer_at, 8
    return bool(_ptrace(GETREGSET, tid, NT_386_IOPERM, _iov_at) == 0)  # ENXIO is usual


def get_signal_mask(tid: int) -> int:
    """Blocked signals, bit n-1 for signal n."""
    request(GETSIGMASK, tid, 8, _buffer_at)
    return int(struct.unpack_from("=Q", _buffer, 0)[0])


def set_signal_mask(tid: int, mask: int) -> None:
    struct.pack_into("=Q", _buffer, 0, mask & 0xFFFFFFFFFFFFFFFF)
    request(SETSIGMASK, tid, 8, _buffer_at)


def is_own_trap(tid: int) -> bool:
    """Whether the SIGTRAP that a thread has stopped with is the kernel's, as a step's is; another one was sent to it by
    somebody (sigaction(2): "si_code")."""
    request(GETSIGINFO, tid, 0, _buffer_at)
    return int(struct.unpack_from("=i", _buffer, 8)[0]) > 0


def is_dispatched_call(tid: int) -> bool:
    """Whether the SIGSYS that a thread has stopped with stands for a system call (PR_SET_SYSCALL_USER_DISPATCH)."""
    request(GETSIGINFO, tid, 0, _buffer_at)
    return int(struct.unpack_from("=i", _buffer, 8)[0]) == SYS_USER_DISPATCH


def peek_signals(tid: int, shared: bool) -> list[bytes]:
    """All pending signals of a thread, or of its process where `shared`, as raw siginfo (128 bytes each)."""
    batch = 32
    found: list[bytes] = []
    while True:
        args = struct.pack("=QIi", len(found), PEEKSIGINFO_SHARED if shared else 0, batch)
        argument = ctypes.create_string_buffer(args, len(args))
        count = request(PEEKSIGINFO, tid, ctypes.addressof(argument), _buffer_at)
        raw = _buffer.raw[: count * SIGINFO_SIZE]
        found += [raw[i : i + SIGINFO_SIZE] for i in range(0, len(raw), SIGINFO_SIZE)]
        if count < batch:
            return found


def is_in_call(tid: int) -> bool:
    """Whether a thread is stopped at the entry to, or exit from, a system call (SYSCALL)."""
    request(GET_SYSCALL_INFO, tid, 24, _buffer_at)
    return _buffer.raw[:1] != b"\0"


class RseqConfiguration(NamedTuple):
    """Where a thread registered its restartable-sequences area; pointer 0: not registered.  Linux 5.13."""

    pointer: int
    size: int
    signature: int


def rseq_configuration(tid: int) -> RseqConfiguration:
    try:
        request(GET_RSEQ_CONFIGURATION, tid, 24, _buffer_at)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EINVAL):  # a kernel without rseq
            return RseqConfiguration(0, 0, 0)
        raise
    return RseqConfiguration._make(struct.unpack_from("=QII", _buffer, 0))


def dispatches_syscalls(tid: int) -> bool | None:
    """Whether a thread has its system calls sent to a handler (PR_SET_SYSCALL_USER_DISPATCH).  None: before Linux 6.4
    nobody can tell."""
    try:
        request(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, 32, _buffer_at)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EINVAL):
            return None
        raise
    return bool(struct.unpack_from("=Q", _buffer, 0)[0])
