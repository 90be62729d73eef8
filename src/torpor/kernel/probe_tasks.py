# SPDX-License-Identifier: Apache-2.0
"""Probes about tasks: stopping them, their PIDs, files, signals, timers.  See `torpor.kernel.probe`."""

import ctypes
import errno
import os
import resource
import select
import signal
import struct
from contextlib import contextmanager

from torpor.kernel import process
from torpor.kernel import ptrace as trace
from torpor.kernel.ioctls import iow
from torpor.kernel.probe import Missing, in_child
from torpor.kernel.syscall import call
from torpor.typed import Iterator

_PR_SET_SYSCALL_USER_DISPATCH, _PR_TIMER_CREATE_RESTORE_IDS = 59, 77
_CAP_SYS_RESOURCE = 24
_NT_PRSTATUS = 1
_GET_SYSCALL_INFO, _SET_SYSCALL_INFO = 0x420E, 0x4212


@contextmanager
def stopped_child(options: int = 0) -> Iterator[int]:
    """A child of ours that is seized and stopped, before or in pause(2)."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                signal.pause()
        finally:
            os._exit(1)
    try:
        trace.seize(pid, options | trace.O_EXITKILL)
        trace.interrupt(pid)
        os.waitpid(pid, 0x40000000)  # __WALL
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0x40000000)


def ptrace() -> None:
    with stopped_child() as pid:
        registers = trace.get_regset(pid, _NT_PRSTATUS)
        trace.set_regset(pid, _NT_PRSTATUS, registers)
        if trace.get_regset(pid, _NT_PRSTATUS) != registers:
            raise Missing("registers do not come back as they were set")
        trace.set_signal_mask(pid, 1 << (signal.SIGUSR1 - 1))
        if not trace.get_signal_mask(pid) >> (signal.SIGUSR1 - 1) & 1:
            raise Missing("the signal mask cannot be set")


def rseq() -> None:
    with stopped_child() as pid:
        out = ctypes.create_string_buffer(24)
        trace.request(trace.GET_RSEQ_CONFIGURATION, pid, 24, ctypes.addressof(out))


def peek_signals() -> None:
    with stopped_child() as pid:
        trace.set_signal_mask(pid, 1 << (signal.SIGUSR1 - 1))
        os.kill(pid, signal.SIGUSR1)
        pending = trace.peek_signals(pid, shared=True)
        if not any(struct.unpack_from("=i", info)[0] == signal.SIGUSR1 for info in pending):
            raise Missing("a pending signal is not shown")


def seccomp_suspend() -> None:
    with stopped_child(trace.O_SUSPEND_SECCOMP):
        pass


def dispatch_shown() -> None:
    try:
        process.prctl(_PR_SET_SYSCALL_USER_DISPATCH, 0)
    except OSError:
        return  # there is no such thing
    with stopped_child() as pid:
        config = ctypes.create_string_buffer(32)
        trace.request(trace.GET_SYSCALL_USER_DISPATCH_CONFIG, pid, len(config), ctypes.addressof(config))


def set_syscall_info() -> None:
    with stopped_child() as pid:
        trace.set_options(pid, trace.O_TRACESYSGOOD | trace.O_EXITKILL)
        trace.cont_to_call(pid)  # to the entry of the restarted pause
        os.waitpid(pid, 0x40000000)
        info = ctypes.create_string_buffer(128)
        size = trace.request(_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
        if size <= 0:
            raise Missing("the kernel does not say what the task is doing")
        trace.request(_SET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))


def pidfd_getfd() -> None:
    theirs, ours = os.pipe()
    with stopped_child() as pid:
        pidfd = process.pidfd_open(pid)
        copy = process.pidfd_getfd(pidfd, ours)
        if process.kcmp(os.getpid(), os.getpid(), process.KCMP_FILE, ours, copy):
            raise Missing("the copy is not the same file")
    for fd in (theirs, ours, pidfd, copy):
        os.close(fd)


def pidfd_thread() -> None:
    os.close(process.pidfd_open(os.getpid(), process.PIDFD_THREAD))


def kcmp() -> None:
    ours, theirs = os.pipe()
    copy = os.dup(ours)
    me = os.getpid()
    same = process.kcmp(me, me, process.KCMP_FILE, ours, copy)
    other = process.kcmp(me, me, process.KCMP_FILE, ours, theirs)
    for fd in (ours, theirs, copy):
        os.close(fd)
    if same or not other:
        raise Missing("the answers are wrong")


def kcmp_epoll() -> None:
    poll = select.epoll()
    ours, theirs = os.pipe()
    poll.register(ours, select.EPOLLIN)
    me = os.getpid()
    different = process.kcmp_epoll(me, ours, me, poll.fileno(), ours)
    poll.close()
    os.close(ours)
    os.close(theirs)
    if different:
        raise Missing("the answers are wrong")


def clone3_set_tid() -> None:
    for _ in range(20):  # somebody may take the PID that we want
        free = os.fork()
        if free == 0:
            os._exit(0)
        os.waitpid(free, 0)
        try:
            pid = process.clone3(exit_signal=signal.SIGCHLD, set_tid=[free])
        except FileExistsError:
            continue
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        if pid != free:
            raise Missing("the child has another PID than wanted")
        return
    raise Missing("each PID was taken by another program at once")


@in_child
def timer_ids() -> None:
    process.prctl(_PR_TIMER_CREATE_RESTORE_IDS, 1)
    wanted = 4711
    timer = ctypes.c_int(wanted)
    event = ctypes.create_string_buffer(struct.pack("@PiiI", 0, signal.SIGUSR1, 0, 0), 64)
    call("timer_create", 1, ctypes.addressof(event), ctypes.addressof(timer))
    if timer.value != wanted:
        raise Missing("timers get other IDs than wanted")


@in_child
def proc_timers() -> None:
    event = ctypes.create_string_buffer(struct.pack("@PiiI", 0, signal.SIGUSR1, 0, 0), 64)
    timer = ctypes.c_int()
    call("timer_create", 1, ctypes.addressof(event), ctypes.addressof(timer))
    with open("/proc/self/timers") as timers:
        if f"ID: {timer.value}" not in timers.read():
            raise Missing("a timer is not shown")


def fdinfo_mnt_id() -> None:
    if "\nmnt_id:" not in _fdinfo(0):
        raise Missing("mount IDs are not shown")


def timerfd() -> None:
    fd = call("timerfd_create", 1, 0)
    try:
        if "it_value:" not in _fdinfo(fd):
            raise Missing("timers are not shown")
        ticks = ctypes.c_uint64(1)
        process.ioctl(fd, iow("T", 0, 8), ctypes.addressof(ticks))  # TFD_IOC_SET_TICKS
    except OSError as error:
        if error.errno != errno.EINVAL:  # which would be: not armed
            raise
    finally:
        os.close(fd)


def close_range() -> None:
    fd = os.dup(0)
    process.close_range(fd, fd)


def openat2() -> None:
    how = ctypes.create_string_buffer(struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, 8), 24)  # RESOLVE_BENEATH
    path = ctypes.create_string_buffer(b".")
    os.close(call("openat2", -100, ctypes.addressof(path), ctypes.addressof(how), 24))


def sys_resource() -> None:
    effective, _, _ = process.capget()
    if not effective >> _CAP_SYS_RESOURCE & 1:
        raise Missing("we do not have CAP_SYS_RESOURCE")
    _raise_limit()


@in_child
def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard if hard == resource.RLIM_INFINITY else hard + 1))


@in_child
def time_namespace() -> None:
    process.unshare(process.CLONE_NEWTIME)
    with open("/proc/self/timens_offsets", "w") as offsets:
        offsets.write("monotonic 1000 0\n")
    pid = os.fork()  # a child is in it, not we
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _fdinfo(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}") as info:
        return info.read()
