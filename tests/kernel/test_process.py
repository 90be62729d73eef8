# SPDX-License-Identifier: Apache-2.0
"""System calls about other tasks, tried on children made for it."""

import ctypes
import errno
import mmap
import os
import random
import select
import signal
import threading

import pytest

from harness.events import child
from torpor.errors import TorporError
from torpor.kernel import process, sched
from torpor.kernel.procfs import read_all
from torpor.kernel.status import parse_status
from torpor.model.identity import Comparisons, Kin, assign

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)


def test_kcmp_of_files() -> None:
    me = os.getpid()
    a = os.open("/dev/null", os.O_RDONLY)
    b = os.open("/dev/null", os.O_RDONLY)
    same = os.dup(a)
    with child() as pid:
        assert process.kcmp(me, me, process.KCMP_FILE, a, same) == 0
        assert process.kcmp(me, pid, process.KCMP_FILE, a, same) == 0
        order = process.kcmp(me, pid, process.KCMP_FILE, a, b)
        assert order in (-1, 1)
        assert process.kcmp(me, pid, process.KCMP_FILE, b, a) == -order
    with pytest.raises(OSError) as error:
        process.kcmp(me, me, process.KCMP_FILE, a, 9999)
    assert error.value.errno == errno.EBADF
    for fd in (a, b, same):
        os.close(fd)


def test_kcmp_of_epoll_targets() -> None:
    me = os.getpid()
    reader, writer = os.pipe()
    with select.epoll() as epoll:
        epoll.register(reader)
        assert process.kcmp_epoll(me, reader, me, epoll.fileno(), reader) == 0
        assert process.kcmp_epoll(me, writer, me, epoll.fileno(), reader) != 0
        with pytest.raises(FileNotFoundError):
            process.kcmp_epoll(me, reader, me, epoll.fileno(), writer)
    os.close(reader)
    os.close(writer)


def test_what_threads_and_processes_share() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    tid, me = thread.native_id or 0, os.getpid()
    kinds = (process.KCMP_VM, process.KCMP_FILES, process.KCMP_FS, process.KCMP_SIGHAND)
    with child() as first, child() as second:
        tasks = [Kin(me), Kin(tid, me), Kin(first, me), Kin(second, me)]
        ids = assign(tasks, Comparisons(*map(process.comparison, kinds)))
        assert ids == {me: (1, 1, 1, 1), tid: (1, 1, 1, 1), first: (2, 2, 2, 2), second: (3, 3, 3, 3)}
    end.set()
    thread.join()


def test_file_sorter_finds_the_descriptions() -> None:
    rng = random.Random(1)
    made: dict[int, int] = {}
    for number in range(100):
        fd = os.open("/dev/null", os.O_RDONLY)
        made[fd] = number
        for _ in range(rng.randrange(3)):
            made[os.dup(fd)] = number
    with child() as first, child() as second:
        places = [(pid, fd) for pid in (os.getpid(), first, second) for fd in made]
        sorter = process.FileSorter()
        for place in places:
            sorter.add(place, key="/dev/null", hint=place[1])
        truth: dict[int, set[tuple[int, int]]] = {}
        for pid, fd in places:
            truth.setdefault(made[fd], set()).add((pid, fd))
        assert sorted(map(sorted, sorter.classes)) == sorted(map(sorted, truth.values()))
        assert sorter.comparisons <= len(made) * 8 + len(made) * 2  # log2(100) < 7, and one for each inherited one
    for fd in made:
        os.close(fd)


def test_pidfd() -> None:
    reader, writer = os.pipe()
    with child() as pid:
        pidfd = process.pidfd_open(pid)
        assert not os.get_inheritable(pidfd)
        taken = process.pidfd_getfd(pidfd, writer)
        assert process.kcmp(os.getpid(), pid, process.KCMP_FILE, taken, writer) == 0
        with pytest.raises(OSError) as error:
            process.pidfd_getfd(pidfd, 9999)
        assert error.value.errno == errno.EBADF
        os.close(taken)
        os.close(pidfd)
    os.close(reader)
    os.close(writer)
    with pytest.raises(ProcessLookupError):
        process.pidfd_open(pid)


def test_pidfd_of_a_thread() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        os.close(process.pidfd_open(thread.native_id or 0, process.PIDFD_THREAD))
    except OSError as error:
        assert error.errno == errno.EINVAL, "neither PIDFD_THREAD nor a kernel before 6.9"
    finally:
        end.set()
        thread.join()


def test_clone3() -> None:
    pid = process.clone3(exit_signal=signal.SIGCHLD)
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    try:
        again = process.clone3(exit_signal=signal.SIGCHLD, set_tid=[pid])
    except PermissionError:
        pytest.skip("choosing a PID needs CAP_CHECKPOINT_RESTORE")
    except FileExistsError:
        pytest.skip("the PID was taken by somebody else meanwhile")
    if again == 0:
        os._exit(8)
    assert again == pid
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 8
    with pytest.raises(FileExistsError):
        process.clone3(exit_signal=signal.SIGCHLD, set_tid=[os.getpid()])
    with pytest.raises(ValueError, match="CLONE_VM"):
        process.clone3(process.CLONE_VM)


def test_reading_memory() -> None:
    with mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for page in range(4):
            memory[page * PAGE : (page + 1) * PAGE] = bytes([65 + page]) * PAGE
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with child(lambda: libc.mprotect(ctypes.c_void_p(at + 2 * PAGE), ctypes.c_size_t(PAGE), 0)) as pid:
            assert process.process_vm_readv(pid, [(at + PAGE, at + PAGE + 3), (at, at + 2)]) == b"BBBAA"
            many = [(at + i, at + i + 1) for i in range(PAGE - 2000, PAGE + 2000)]
            assert process.process_vm_readv(pid, many) == b"A" * 2000 + b"B" * 2000
            assert process.process_vm_readv(pid, [(at, at + 4 * PAGE)]) == b"A" * PAGE + b"B" * PAGE
            assert process.process_vm_readv(pid, []) == b""
            with pytest.raises(OSError) as error:
                process.process_vm_readv(pid, [(at + 2 * PAGE, at + 3 * PAGE)])
            assert error.value.errno == errno.EFAULT


def test_robust_list() -> None:
    head, size = process.get_robust_list(0)
    assert size == 3 * ctypes.sizeof(ctypes.c_long)
    with child() as pid:
        assert process.get_robust_list(pid)[1] in (0, size)  # glibc sets the child's again
    assert head


def test_capabilities() -> None:
    def drop() -> None:
        process.capset(1 << 40 | 2, 1 << 40 | 6, 4)

    if parse_status(read_all("/proc/self/status")).credentials.permitted >> 40 != 1:
        pytest.skip("needs the capabilities that it drops")
    with child(drop) as pid:
        assert process.capget(pid) == (1 << 40 | 2, 1 << 40 | 6, 4)
        cred = parse_status(read_all(f"/proc/{pid}/status")).credentials
        assert process.capget(pid) == (cred.effective, cred.permitted, cred.inheritable)


def test_prctl() -> None:
    names = [ctypes.create_string_buffer(name) for name in (b"a name", read_all("/proc/thread-self/comm")[:-1])]
    process.prctl(15, ctypes.addressof(names[0]))
    assert read_all("/proc/thread-self/comm") == b"a name\n"
    process.prctl(15, ctypes.addressof(names[1]))
    with pytest.raises(OSError):
        process.prctl(999999)


def test_ioctl_takes_addresses() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"four")
    count = ctypes.c_int()
    process.ioctl(reader, 0x541B, ctypes.addressof(count))  # FIONREAD
    assert count.value == 4
    os.close(reader)
    os.close(writer)


def test_close_range() -> None:
    fds = [os.dup(0) for _ in range(3)]
    process.close_range(fds[0], fds[0])
    with pytest.raises(OSError):
        os.fstat(fds[0])
    for fd in fds[1:]:
        os.close(fd)


def test_namespaces() -> None:
    def leave() -> None:
        process.unshare(process.CLONE_NEWUTS)

    if os.geteuid() != 0:
        pytest.skip("needs root")
    with child(leave) as pid:
        theirs = os.stat(f"/proc/{pid}/ns/uts").st_ino
        assert theirs != os.stat("/proc/self/ns/uts").st_ino

        def enter() -> None:
            fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY)
            process.setns(fd, process.CLONE_NEWUTS)
            os.close(fd)

        with child(enter) as second:
            assert os.stat(f"/proc/{second}/ns/uts").st_ino == theirs


def test_scheduling() -> None:
    with child() as pid:
        normal = sched.sched_getattr(pid)
        assert (normal.policy, normal.nice) == (os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid))
        sched.sched_setattr(
            pid, normal._replace(policy=sched.SCHED_BATCH, nice=7, flags=sched.SCHED_FLAG_RESET_ON_FORK)
        )
        found = sched.sched_getattr(pid)
        assert (found.policy, found.nice, found.flags) == (sched.SCHED_BATCH, 7, sched.SCHED_FLAG_RESET_ON_FORK)
        assert sched.getpriority(pid) == os.getpriority(os.PRIO_PROCESS, pid) == 7
        sched.ioprio_set(pid, 2 << 13 | 5)
        assert sched.ioprio_get(pid) == 2 << 13 | 5
        try:
            sched.sched_setattr(pid, sched.SchedAttr(sched.SCHED_RR, priority=3))
        except PermissionError:
            pytest.skip("real-time scheduling needs CAP_SYS_NICE")
        assert (
            os.sched_getscheduler(pid) == os.SCHED_RR | os.SCHED_RESET_ON_FORK
            or os.sched_getscheduler(pid) == os.SCHED_RR
        )
        assert os.sched_getparam(pid).sched_priority == 3 == sched.sched_getattr(pid).priority
    with pytest.raises(ProcessLookupError):
        sched.sched_getattr(pid)


def test_a_child_that_begins_here() -> None:
    """Both may run on the processors on which the caller might; the child began on the caller's."""
    allowed = os.sched_getaffinity(0)
    reader, writer = os.pipe()
    pid = process.fork_here()
    if pid == 0:
        os.write(writer, b"y" if os.sched_getaffinity(0) == allowed else b"n")
        os._exit(0)
    os.close(writer)
    assert os.sched_getaffinity(0) == allowed
    assert os.read(reader, 1) == b"y" and os.waitpid(pid, 0) == (pid, 0)
    os.close(reader)


def test_no_child_begins_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        assert len(os.sched_getaffinity(0)) == 1
        raise BlockingIOError

    allowed = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(TorporError, match="can start no process"):
        process.fork_here()
    assert os.sched_getaffinity(0) == allowed
