# SPDX-License-Identifier: Apache-2.0
"""fdinfo: real descriptors of this process are the oracle, invented text must never raise anything but ValueError."""

import ctypes
import fcntl
import os
import pty
import select
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.kernel import fdinfo

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def keep() -> Iterator[list[int]]:
    """A list of descriptors that are closed at the end of the test."""
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def mine(fd: int) -> fdinfo.FdInfo:
    return fdinfo.read("self", fd)


def test_regular_file(tmp_path: Path, keep: list[int]) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    keep.append(fd)
    os.write(fd, b"x" * 12)
    os.lseek(fd, 5, os.SEEK_SET)
    info = mine(fd)
    assert (info.pos, info.cloexec, info.ino) == (5, True, os.fstat(fd).st_ino)
    assert info.status_flags == fcntl.fcntl(fd, fcntl.F_GETFL)
    assert info.status_flags & os.O_APPEND
    os.set_inheritable(fd, True)
    assert not mine(fd).cloexec


def test_locks(tmp_path: Path, keep: list[int]) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    keep.append(fd)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX, 7, 3)
    locks = set(mine(fd).locks)
    assert fdinfo.FileLock("FLOCK", False, "WRITE", os.getpid(), 0, None) in locks
    assert fdinfo.FileLock("POSIX", False, "WRITE", os.getpid(), 3, 9) in locks


def test_eventfd_and_epoll(keep: list[int]) -> None:
    fd = os.eventfd(5, os.EFD_SEMAPHORE)
    keep.append(fd)
    assert mine(fd).eventfd in ((5, True), (5, None))
    epoll = select.epoll()
    epoll.register(fd, select.EPOLLIN | select.EPOLLET)
    twin = os.dup(fd)
    os.close(fd)
    keep[:] = [twin]
    (target,) = mine(epoll.fileno()).epoll
    assert target.tfd == fd
    assert target.events & select.EPOLLET
    assert target.data & 0xFFFFFFFF == fd
    assert target.ino in (None, os.fstat(twin).st_ino)
    epoll.close()


def test_timerfd(keep: list[int]) -> None:
    fd = libc.timerfd_create(1, 0)
    keep.append(fd)
    assert mine(fd).timerfd == (1, 0, 0, (0, 0), (0, 0))
    libc.timerfd_settime(fd, 0, struct.pack("4q", 7, 5, 1000, 9), None)
    timer = mine(fd).timerfd
    assert timer is not None
    assert timer.interval == (7, 5)
    assert (990, 0) < timer.value <= (1000, 9)


def test_signalfd_and_pidfd(keep: list[int]) -> None:
    mask = 1 << (signal.SIGUSR1 - 1) | 1 << 63
    fd = libc.signalfd(-1, struct.pack("Q", mask), 0)
    pidfd = os.pidfd_open(os.getpid())
    keep += [fd, pidfd]
    assert mine(fd).sigmask == mask
    assert mine(pidfd).pid == os.getpid()
    assert mine(pidfd).ns_pids == (os.getpid(),)


def test_socket_terminal_inotify(tmp_path: Path, keep: list[int]) -> None:
    one, two = socket.socketpair()
    socket.send_fds(one, [b"x"], [0])
    assert mine(two.fileno()).scm_fds in (None, 1)
    master, slave = pty.openpty()
    keep += [master, slave]
    number = int(os.ttyname(slave).rpartition("/")[2])
    assert mine(master).tty_index == number
    watcher = libc.inotify_init1(0)
    keep.append(watcher)
    watch = libc.inotify_add_watch(watcher, bytes(tmp_path), 2)
    (seen,) = mine(watcher).inotify
    assert (seen.wd, seen.ino, seen.mask) == (watch, tmp_path.stat().st_ino, 2)
    one.close()
    two.close()


def test_read_all_matches_listing(keep: list[int]) -> None:
    for _ in range(50):
        keep.append(os.dup(0))
    found = fdinfo.read_all(os.getpid())
    assert list(found) == sorted(found)
    assert set(keep) <= set(found)


def test_long_epoll_list_is_read_whole(keep: list[int]) -> None:
    epoll = select.epoll()
    for _ in range(400):
        fd = os.eventfd(0)
        keep.append(fd)
        epoll.register(fd)
    assert sorted(target.tfd for target in mine(epoll.fileno()).epoll) == sorted(keep)
    epoll.close()


@pytest.mark.parametrize("text", ["", "pos:\t0\n", "flags:\t02\n", "pos:\tx\nflags:\t02\nmnt_id:\t1\n"])
def test_foreign_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an fdinfo file"):
        fdinfo.parse(text)


HEAD = "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t9\n"
LINES = st.sampled_from(
    [
        "eventfd-count:                5",
        "eventfd-semaphore: 1",
        "tfd:        3 events:       19 data: 7  pos:0 ino:40e sdev:10",
        "clockid: 1",
        "it_value: (0, 0",
        "sigmask:\t00",
        "Pid:\t-1",
        "NSpid:\t1\t2",
        "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:2146342 0 EOF",
        "inotify wd:1 ino:3f7e8 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:e8",
        "fanotify flags:0 event-flags:8000",
        "iff:\ttun0",
    ]
)


@given(st.lists(st.one_of(LINES, st.text(), st.builds(lambda line, cut: line[:cut], LINES, st.integers(0, 60)))))
def test_any_tail_is_tolerated(lines: list[str]) -> None:
    info = fdinfo.parse(HEAD + "\n".join(lines))
    assert (info.pos, info.flags, info.mnt_id, info.ino) == (0, 2, 17, 9)


@given(st.text())
def test_any_text_parses_or_is_a_value_error(text: str) -> None:
    try:
        fdinfo.parse(text)
    except ValueError:
        pass


@given(
    st.integers(-1, 1 << 63),
    st.integers(0, 1 << 32),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))),
)
def test_epoll_lines_round_trip(pos: int, flags: int, targets: list[tuple[int, int, int]]) -> None:
    text = f"pos:\t{pos}\nflags:\t0{flags:o}\nmnt_id:\t1\nino:\t2\n"
    text += "".join(f"tfd: {t:8d} events: {e:8x} data: {d:16x}  pos:0 ino:1 sdev:2\n" for t, e, d in targets)
    info = fdinfo.parse(text)
    assert (info.pos, info.flags) == (pos, flags)
    assert [target[:3] for target in info.epoll] == targets
