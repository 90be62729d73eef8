# SPDX-License-Identifier: Apache-2.0
"""System calls about other processes, and a few about oneself that Python lacks.  One thin function each, OSError.

- kcmp(2) compares what two tasks hold by the hidden addresses of the kernel's objects: an order, good for sorting.
  Two tasks that have nothing (zombies) are "equal" to it.
- pidfd_open(2) reaches a thread that is no leader only with PIDFD_THREAD (6.9), and then also a thread with a
  descriptor table of its own, and the others of a zombie leader.
- process_vm_readv(2) honours the protection of the pages (PROT_NONE is EFAULT); /proc/PID/mem does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from torpor import signals as signal
from torpor.arch import native
from torpor.errors import Refusal, TorporError
from torpor.kernel.syscall import NR, call
from torpor.model.identity import UNORDERED, Compare, Sorter
from torpor.typed import Sequence

# include/uapi/linux/kcmp.h
KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_IO, KCMP_SYSVSEM, KCMP_EPOLL_TFD = range(8)

# include/uapi/linux/pidfd.h
PIDFD_NONBLOCK = os.O_NONBLOCK
PIDFD_THREAD = os.O_EXCL
MOST_SENT = 1 << 30  # bytes that sendfile(2) is asked for: on a 32-bit machine no more than 2 GiB - 1 can be
_LARGE = 1 << 31  # bytes of a file that 32-bit machines open only with O_LARGEFILE

# include/uapi/linux/sched.h
CLONE_VM = 0x100
CLONE_FS = 0x200
CLONE_FILES = 0x400
CLONE_SIGHAND = 0x800
AT_FDCWD = -100
_PR_SET_PDEATHSIG = 1
CLONE_PIDFD = 0x1000
CLONE_PTRACE = 0x2000
CLONE_VFORK = 0x4000
CLONE_PARENT = 0x8000
CLONE_THREAD = 0x10000
CLONE_NEWNS = 0x20000
CLONE_SYSVSEM = 0x40000
CLONE_SETTLS = 0x80000
CLONE_PARENT_SETTID = 0x100000
CLONE_CHILD_CLEARTID = 0x200000
CLONE_UNTRACED = 0x800000
CLONE_CHILD_SETTID = 0x1000000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_IO = 0x80000000
CLONE_NEWTIME = 0x80
CLONE_CLEAR_SIGHAND = 0x1_00000000
CLONE_INTO_CGROUP = 0x2_00000000

# Functions of their own with declared arguments: half the time of `call`, and a tree may need 100,000 comparisons.
_raw_kcmp = ctypes.CDLL(None, use_errno=True)["syscall"]
_raw_kcmp.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_raw_kcmp.restype = ctypes.c_long
_raw_getfd = ctypes.CDLL(None, use_errno=True)["syscall"]
_raw_getfd.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_uint)
_raw_getfd.restype = ctypes.c_long
_raw_fstatfs = ctypes.CDLL(None, use_errno=True)["fstatfs64"]
_KCMP, _GETFD = NR["kcmp"], NR["pidfd_getfd"]
_ORDER = (0, -1, 1, UNORDERED)  # the kernel's 0, 1, 2, 3; a failure's -1 is looked at first


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """A copy of `data` that has an address."""
    return ctypes.create_string_buffer(data, len(data))


def kcmp(pid1: int, pid2: int, kind: int, idx1: int = 0, idx2: int = 0) -> int:
    """kcmp(2) (3.5): 0 the same, -1 and 1 before and after in a hidden order, UNORDERED different.

    `idx1`, `idx2`: descriptors for KCMP_FILE.  PIDs may be TIDs.  EBADF: no such descriptor; EPERM: no ptrace rights.
    """
    result = _raw_kcmp(_KCMP, pid1, pid2, kind, idx1, idx2)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return _ORDER[result]


def kcmp_epoll(pid1: int, fd: int, pid2: int, epfd: int, target: int, nth: int = 0) -> int:
    """KCMP_EPOLL_TFD (4.13): whether `fd` is the `nth` target of `epfd` registered under the number `target`.

    ENOENT: no such target.
    """
    slot = _buffer(struct.pack("=III", epfd, target, nth))  # struct kcmp_epoll_slot
    return kcmp(pid1, pid2, KCMP_EPOLL_TFD, fd, ctypes.addressof(slot))


def comparison(kind: int) -> Compare[int]:
    """For model.identity: compare(tid, tid) of KCMP_VM, KCMP_FILES, KCMP_FS or KCMP_SIGHAND."""

    def compare(a: int, b: int) -> int:
        result = _raw_kcmp(_KCMP, a, b, kind, 0, 0)
        return _ORDER[result] if result >= 0 else kcmp(a, b, kind)

    return compare


Place = tuple[int, int]  # (tid, descriptor)


def compare_files(a: Place, b: Place) -> int:
    """kcmp of the open file descriptions behind two descriptors."""
    return kcmp(a[0], b[0], KCMP_FILE, a[1], b[1])


class FileSorter(Sorter[Place]):
    """Which descriptors of which tasks are one open file description; the classes are in `.classes`.

    ``add((tid, fd), key, hint=fd)``: `key` is whatever is cheap and equal for one description: (st_dev, st_ino, pos,
    flags without O_CLOEXEC).
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(compare_files)


def fork() -> int:
    """os.fork(); raises TorporError where there can be no more processes."""
    try:
        return os.fork()
    except BlockingIOError:
        why = "a limit to processes is reached: kernel.pid_max, pids.max of its cgroup, or its user's (ulimit -u)"
        raise TorporError("Torpor can start no process", why, "end some, or raise it", code="no-processes") from None


def fork_here() -> int:
    """As `fork`, and the child begins on this processor, which the caller is about to leave.  Where all are busy the
    kernel would as soon have it wait for another one's next tick (4 ms), and then whoever works there waits for as
    long.  The caller's affinity is set anew (to what it is): not for a process that lives long."""
    allowed = os.sched_getaffinity(0)
    number = _buffer(bytes(4))
    call("getcpu", ctypes.addressof(number), 0, 0)
    try:
        os.sched_setaffinity(0, struct.unpack("=I", number.raw))
        return fork()
    finally:
        os.sched_setaffinity(0, allowed)


def fork_idle(caught: int = 0, ready: int = -1) -> int:
    """A child that does nothing, and does not outlive us: it holds what we have open.  It may catch a signal, and says
    so by a byte to descriptor `ready`."""
    parent = os.getpid()
    pid = fork()
    if pid == 0:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if caught:
            signal.signal(caught, lambda *_: None)
            os.write(ready, b"!")
        while os.getppid() == parent:
            signal.pause()
        os._exit(0)
    return pid


def pidfd_open(pid: int, flags: int = 0) -> int:
    """pidfd_open(2) (5.3); PIDFD_THREAD (6.9): of that very thread.  The descriptor is close-on-exec."""
    return call("pidfd_open", pid, flags)


def open_exactly(path: str, flags: int, dir_fd: int | None = None, mode: int = 0) -> int:
    """openat(2) with these very flags.  On 32-bit machines os.open adds O_LARGEFILE, which a description keeps.

    There a file of 2 GiB cannot be opened without.  What areas map is, all the same, with: nobody sees their flags, and
    descriptors to which it matters are refused (`is_outgrown`).
    """
    name = _buffer(os.fsencode(path) + b"\0")
    directory = AT_FDCWD if dir_fd is None else dir_fd
    try:
        try:
            return call("openat", directory, ctypes.addressof(name), flags, mode)
        except OSError as error:
            if error.errno != errno.EOVERFLOW:
                raise
        return call("openat", directory, ctypes.addressof(name), flags | native().o_largefile, mode)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None


def is_outgrown(size: int, flags: int) -> bool:
    """Whether a file of that size was opened, with these flags, when it was smaller: on a 32-bit machine it could not
    be opened so any more, nor can a description be given or taken O_LARGEFILE later."""
    arch = native()
    return arch.word_size == 4 and size >= _LARGE and not flags & (arch.o_largefile | os.O_PATH)


def pidfd_open_thread(tid: int, subject: str) -> int:
    """`pidfd_open` of a thread.  Raises Refusal where the kernel cannot do that."""
    try:
        return pidfd_open(tid, PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    raise Refusal(
        subject,
        f"its descriptors are reached only through thread {tid}, not its first, and this kernel cannot do that",
        "use Linux 6.9 or newer, which can (PIDFD_THREAD)",
        code="needs-kernel",
    )


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2) (5.6): a duplicate of a descriptor of another task, close-on-exec.  Needs ptrace rights."""
    result: int = _raw_getfd(_GETFD, pidfd, fd, 0)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def statfs_type(fd: int) -> int:
    """f_type of fstatfs(2): which file system it is.  Python's statvfs leaves that out."""
    buffer = ctypes.create_string_buffer(256)
    if _raw_fstatfs(fd, buffer):  # not the system call: on 32-bit machines that has one argument more
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(struct.unpack_from("=l" if ctypes.sizeof(ctypes.c_long) == 4 else "=q", buffer)[0]) & 0xFFFFFFFF


def clone_args(
    flags: int,
    *,
    pidfd: int = 0,
    child_tid: int = 0,
    parent_tid: int = 0,
    exit_signal: int = 0,
    stack: int = 0,
    stack_size: int = 0,
    tls: int = 0,
    set_tid: int = 0,
    set_tid_size: int = 0,
    cgroup: int = 0,
) -> bytes:
    """struct clone_args (88 bytes, 5.7).  `set_tid`: the address of `set_tid_size` pid_t, innermost namespace first."""
    return struct.pack(
        "=11Q", flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup
    )


def clone3(flags: int = 0, *, exit_signal: int = 0, set_tid: Sequence[int] = (), cgroup: int = 0) -> int:
    """clone3(2) (5.3, set_tid 5.5) in the manner of fork: the child's PID, and 0 in the child.

    The child is a copy whose interpreter does not know that it was forked: it may only make system calls, execute or
    os._exit.  Sharing memory with it (CLONE_VM) is refused.  EEXIST: a PID of `set_tid` is taken.
    """
    if flags & CLONE_VM:
        raise ValueError("CLONE_VM would make two interpreters run in one memory")
    tids = (ctypes.c_int * max(1, len(set_tid)))(*set_tid)
    where = ctypes.addressof(tids) if set_tid else 0
    packed = clone_args(flags, exit_signal=exit_signal, set_tid=where, set_tid_size=len(set_tid), cgroup=cgroup)
    args = _buffer(packed)
    return call("clone3", ctypes.addressof(args), len(packed))


IOV_MAX = 1024


def process_vm_readv(pid: int, runs: Sequence[tuple[int, int]]) -> bytearray:
    """The memory of `pid` at the (start, end) `runs`, one after the other (3.2).

    Shorter than asked for if a page cannot be read: then it ends before that page.  EFAULT: not even the first.
    """
    buffer = bytearray(sum(end - start for start, end in runs))
    if not buffer:
        return buffer
    base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    done = 0
    for first in range(0, len(runs), IOV_MAX):
        part = runs[first : first + IOV_MAX]
        size = sum(end - start for start, end in part)
        local = _buffer(struct.pack("@NN", base + done, size))
        remote = _buffer(b"".join(struct.pack("@NN", start, end - start) for start, end in part))
        try:
            got = call("process_vm_readv", pid, ctypes.addressof(local), 1, ctypes.addressof(remote), len(part), 0)
        except OSError:
            if done:
                break
            raise
        done += got
        if got < size:
            break
    return buffer if done == len(buffer) else buffer[:done]


def process_vm_writev(pid: int, data: memoryview, runs: Sequence[tuple[int, int]]) -> int:
    """Write `data`, a writable buffer's, to the (start, end) `runs` of `pid`'s memory, one after the other (3.2);
    IOV_MAX runs at most.  Returns how many bytes were written: it ends before a page that cannot be."""
    local = _buffer(struct.pack("2N", ctypes.addressof(ctypes.c_char.from_buffer(data)), len(data)))
    remote = _buffer(b"".join(struct.pack("2N", start, end - start) for start, end in runs))
    return call("process_vm_writev", pid, ctypes.addressof(local), 1, ctypes.addressof(remote), len(runs), 0)


def get_robust_list(tid: int) -> tuple[int, int]:
    """get_robust_list(2): (address of the head, length); (0, ...) if the thread has none.  Needs ptrace rights."""
    out = (ctypes.c_size_t * 2)()
    call("get_robust_list", tid, ctypes.addressof(out), ctypes.addressof(out) + ctypes.sizeof(ctypes.c_size_t))
    return out[0], out[1]


_CAP_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


def capget(tid: int = 0) -> tuple[int, int, int]:
    """capget(2): (effective, permitted, inheritable) of a thread; 0: the caller."""
    header = _buffer(struct.pack("=Ii", _CAP_VERSION, tid))
    data = (ctypes.c_uint32 * 6)()
    call("capget", ctypes.addressof(header), ctypes.addressof(data))
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread."""
    header = _buffer(struct.pack("=Ii", _CAP_VERSION, 0))
    three = (effective, permitted, inheritable)
    data = _buffer(struct.pack("=6I", *(word & 0xFFFFFFFF for word in three), *(word >> 32 for word in three)))
    call("capset", ctypes.addressof(header), ctypes.addressof(data))


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) of the calling thread; pointers are addresses."""
    return call("prctl", option, arg2, arg3, arg4, arg5)


def ioctl(fd: int, request: int, arg: int = 0) -> int:
    """ioctl(2) with an integer of all 64 bits, or an address, where fcntl.ioctl takes an int."""
    return call("ioctl", fd, request, arg)


def setns(fd: int, kinds: int = 0) -> None:
    """setns(2): enter the namespace, or with a pidfd the namespaces `kinds` (CLONE_NEW*) of a task (5.8)."""
    call("setns", fd, kinds)


def unshare(flags: int) -> None:
    """unshare(2)."""
    call("unshare", flags)


CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2) (5.9)."""
    call("close_range", first, last, flags)
