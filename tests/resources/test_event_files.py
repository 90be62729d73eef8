# SPDX-License-Identifier: Apache-2.0
"""eventfd, timerfd, signalfd, pipe and FIFO: each kind saves descriptors of this process and makes them again."""

import contextlib
import ctypes
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torpor.errors import ImageError
from torpor.images import kinds
from torpor.images.directory import ImageReader, ImageWriter
from torpor.images.schema.fdinfo import FileEntry
from torpor.kernel import fdinfo
from torpor.options import Options
from torpor.resources import description, registry
from torpor.resources.base import FileKind
from torpor.resources.context import Dump, Restore, SeenFile

libc = ctypes.CDLL(None, use_errno=True)
RoundTrip = Callable[..., list[int]]


@pytest.fixture
def round_trip(tmp_path: Path) -> Iterator[RoundTrip]:
    """A function that saves descriptors of this process to images and returns new ones made from these."""
    images = tmp_path / "images"
    images.mkdir()
    with contextlib.ExitStack() as stack:
        dir_fd = os.open(images, os.O_RDONLY)
        stack.callback(os.close, dir_fd)
        pidfd = os.pidfd_open(os.getpid())
        stack.callback(os.close, pidfd)

        def go(*fds: int, change: Callable[[FileEntry], None] | None = None) -> list[int]:
            dump = Dump(Options(images_dir=str(images)), ImageWriter(dir_fd))
            used: dict[int, FileKind] = {}
            ids = []
            for fd in fds:
                link = os.readlink(f"/proc/self/fd/{fd}")
                seen = SeenFile(dump.new_file_id(), os.getpid(), fd, link, os.fstat(fd), fdinfo.read("self", fd), pidfd)
                kind = registry.file_kind(registry.file_key(link, seen.stat))
                assert kind is not None
                used[id(kind)] = kind
                kind.examine(seen, dump)
                entry = kind.save(seen, dump)
                if change:
                    change(entry)
                dump.file_entries.append(entry)
                ids.append(seen.id)
                seen.close()
            for kind in used.values():
                kind.late(dump)
            dump.images.write(kinds.FILES, dump.file_entries)
            description.write_extras(dump)
            return restored(ids)

        def restored(ids: list[int]) -> list[int]:
            restore = Restore(Options(images_dir=str(images)), ImageReader(dir_fd))
            restore.files = {entry.id: entry for entry in restore.images.entries(kinds.FILES)}
            by_id = {i: kind for i in ids if (kind := registry.file_kind_of_type(restore.files[i].type))}
            for i, kind in by_id.items():
                kind.check(restore.files[i], restore)
            for i, kind in by_id.items():
                for need in kind.needs(restore.files[i], restore):
                    reg = restore.files[need].reg
                    assert reg is not None
                    restore.made[need] = os.open(reg.name, os.O_PATH)
                    stack.callback(os.close, restore.made[need])
                if i not in restore.made:
                    restore.made[i] = kind.make(restore.files[i], restore)
            for i, kind in by_id.items():
                stack.callback(os.close, restore.made[i])
                kind.wire(restore.files[i], restore.made[i], restore)
            for i, kind in by_id.items():
                kind.last(restore.files[i], restore.made[i], restore)
            return [restore.made[i] for i in ids]

        yield go


def same_fdinfo(before: int, after: int) -> None:
    one, two = fdinfo.read("self", before), fdinfo.read("self", after)
    assert oct(one.status_flags) == oct(two.status_flags)
    assert (one.pos, one.eventfd, one.sigmask) == (two.pos, two.eventfd, two.sigmask)


@pytest.mark.parametrize("flags", [0, os.EFD_SEMAPHORE, os.EFD_NONBLOCK, os.EFD_SEMAPHORE | os.EFD_CLOEXEC])
@pytest.mark.parametrize("counter", [0, 1, 7, 1 << 40, (1 << 64) - 2])
def test_eventfd(round_trip: RoundTrip, flags: int, counter: int) -> None:
    fd = os.eventfd(0, flags)
    if counter:
        os.eventfd_write(fd, counter)
    (new,) = round_trip(fd)
    same_fdinfo(fd, new)
    os.close(fd)
    if counter:
        assert os.eventfd_read(new) == (1 if flags & os.EFD_SEMAPHORE else counter)


def test_eventfd_with_an_impossible_counter(round_trip: RoundTrip) -> None:
    def change(entry: FileEntry) -> None:
        assert entry.efd is not None
        entry.efd.counter = (1 << 64) - 1

    fd = os.eventfd(0)
    with pytest.raises(ImageError, match="impossible counter"):
        round_trip(fd, change=change)
    os.close(fd)


def test_signalfd(round_trip: RoundTrip) -> None:
    masks = [1 << (signal.SIGUSR1 - 1) | 1 << 63, 0, (1 << 64) - 1]
    fds = [libc.signalfd(-1, struct.pack("Q", mask), os.O_NONBLOCK if mask else 0) for mask in masks]
    for fd, new in zip(fds, round_trip(*fds), strict=True):
        same_fdinfo(fd, new)
        os.close(fd)


def timer(clock: int, flags: int, value: float, interval: float = 0) -> int:
    fd: int = libc.timerfd_create(clock, os.O_NONBLOCK)
    spec = [*divmod(int(interval * 1e9), 10**9), *divmod(int(value * 1e9), 10**9)]
    assert libc.timerfd_settime(fd, flags, struct.pack("4q", *spec), None) == 0
    return fd


def facts(fd: int) -> fdinfo.Timerfd:
    found = fdinfo.read("self", fd).timerfd
    assert found is not None
    return found


def left(fd: int) -> float:
    seconds, nanoseconds = facts(fd).value
    return seconds + nanoseconds / 1e9


@pytest.mark.parametrize("clock", [time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME])
@pytest.mark.parametrize("flags", [0, 1, 3])
@pytest.mark.parametrize("interval", [0, 50])
def test_timerfd(round_trip: RoundTrip, clock: int, flags: int, interval: int) -> None:
    if flags == 3 and clock != time.CLOCK_REALTIME:
        pytest.skip("only the wall clock can be set")
    fd = timer(clock, flags, 100 + (time.clock_gettime(clock) if flags else 0), interval)
    (new,) = round_trip(fd)
    same_fdinfo(fd, new)
    one, two = facts(fd), facts(new)
    assert (one.clockid, one.ticks, one.settime_flags, one.interval) == (
        two.clockid,
        two.ticks,
        two.settime_flags,
        two.interval,
    )
    assert abs(left(fd) - left(new)) < 2
    os.close(fd)


def test_timerfd_disarmed_and_expired(round_trip: RoundTrip) -> None:
    disarmed, expired = timer(1, 0, 0, 33), timer(1, 0, 1e-6)
    ticking = timer(1, 1, max(time.monotonic() - 35, 0.001), 10)
    time.sleep(0.01)
    new = round_trip(disarmed, expired, ticking)
    assert facts(new[0]) == facts(disarmed)
    assert facts(new[1]).ticks == 1
    assert facts(new[1]).value == (0, 0)
    assert os.read(new[2], 8) == os.read(ticking, 8) >= struct.pack("Q", 1)
    assert abs(left(new[2]) - left(ticking)) < 2
    for fd in (disarmed, expired, ticking):
        os.close(fd)


def test_timerfd_from_criu_that_expired(round_trip: RoundTrip) -> None:
    """CRIU stores a periodic timer that expired with one tick and no time left."""

    def change(entry: FileEntry) -> None:
        assert entry.tfd is not None
        entry.tfd.ticks, entry.tfd.vsec, entry.tfd.vnsec = 1, 0, 0

    fd = timer(1, 0, 30, 30)
    (new,) = round_trip(fd, change=change)
    assert facts(new).ticks == 1
    assert 0 < left(new) <= 30
    os.close(fd)


def test_wall_clock_deadline_survives_a_wait(round_trip: RoundTrip) -> None:
    """What is left in the image says one thing, the deadline another: the deadline is right."""

    def change(entry: FileEntry) -> None:
        assert entry.tfd is not None
        entry.tfd.vsec = 90

    fd = timer(time.CLOCK_REALTIME, 1, time.time() + 50)
    (new,) = round_trip(fd, change=change)
    assert 45 < left(new) <= 50
    os.close(fd)


def test_pipe_with_content(round_trip: RoundTrip) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, b"x" * 5)
    os.write(writer, bytes(range(256)) * 200)
    assert os.read(reader, 5) == b"x" * 5
    new_reader, new_writer = round_trip(reader, writer)
    assert os.read(reader, 70000) == bytes(range(256)) * 200, "the original's content is gone"
    same_fdinfo(reader, new_reader)
    same_fdinfo(writer, new_writer)
    assert os.fstat(new_reader).st_ino == os.fstat(new_writer).st_ino
    assert os.read(new_reader, 70000) == bytes(range(256)) * 200
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("size", [4096, 16384, 1 << 20])
def test_pipe_size_and_full(round_trip: RoundTrip, size: int) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(writer, 1031, size)
    data = os.urandom(size)
    assert os.write(writer, data) == size
    new_reader, new_writer = round_trip(reader, writer)
    assert fcntl.fcntl(new_reader, 1032) == size
    with pytest.raises(BlockingIOError):
        os.write(new_writer, b"x")
    assert b"".join(iter(lambda: read_or_nothing(new_reader), b"")) == data
    os.close(reader)
    os.close(writer)


def read_or_nothing(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_pipe_packets(round_trip: RoundTrip) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    packets = [b"one", b"t" * 4096, b"3"]
    for packet in packets:
        os.write(writer, packet)
    new_reader, new_writer = round_trip(reader, writer)
    same_fdinfo(writer, new_writer)
    for packet in packets:
        assert os.read(new_reader, 10000) == packet
    assert read_or_nothing(new_reader) == b""
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(("before", "full"), [(b"", False), (b"packet", False), (b"packet", True)])
@pytest.mark.parametrize("packet", [True, False])
def test_whether_a_single_byte_is_a_packet(round_trip: RoundTrip, before: bytes, packet: bool, full: bool) -> None:
    """Whatever the flag says now, and on whichever end: what is written later joins plain bytes, and no packet."""
    reader, writer = os.pipe2(os.O_NONBLOCK)

    def put(data: bytes, direct: bool, fd: int = writer) -> None:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if direct else 0))
        os.write(fd, data)

    if full:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2 * os.sysconf("SC_PAGE_SIZE"))
    if before:
        put(before, True)
    put(b"1", packet)
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK | (0 if packet else os.O_DIRECT))
    new_reader, new_writer = round_trip(reader, writer)
    assert not before or os.read(new_reader, 100) == before
    put(b"later", False, new_writer)
    assert os.read(new_reader, 100) == (b"1" if packet else b"1later")
    os.close(reader)
    os.close(writer)


def test_one_packet_is_cut_by_a_short_read(round_trip: RoundTrip) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    os.write(writer, b"packet")
    new_reader, _ = round_trip(reader, writer)
    assert os.read(new_reader, 2) == b"pa"
    assert read_or_nothing(new_reader) == b""
    os.close(reader)
    os.close(writer)


def test_half_closed_pipes(round_trip: RoundTrip) -> None:
    unread, left_over = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
    os.write(unread[1], b"never read")
    os.close(unread[0])
    os.write(left_over[1], b"left over")
    os.close(left_over[1])
    writer, reader = round_trip(unread[1], left_over[0])
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    again = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(again, 100) == b"never read"
    os.close(again)
    assert os.read(reader, 100) == b"left over"
    assert os.read(reader, 100) == b""
    os.close(unread[1])
    os.close(left_over[0])


def test_pipe_opened_again_and_owner(round_trip: RoundTrip) -> None:
    reader, writer = os.pipe()
    os.fchown(reader, 1234, 4321)
    again = os.open(f"/proc/self/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK)
    both = os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_APPEND)
    os.write(both, b"data")
    fds = [again, both, reader, writer]
    new = round_trip(*fds)
    for fd, made in zip(fds, new, strict=True):
        same_fdinfo(fd, made)
        assert (os.fstat(made).st_uid, os.fstat(made).st_gid) == (1234, 4321)
        os.close(fd)
    assert len({os.fstat(fd).st_ino for fd in new}) == 1
    assert os.read(new[0], 10) == b"data"


def test_pipe_owner_for_signals(round_trip: RoundTrip) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGRTMIN + 1)
    fcntl.fcntl(writer, fcntl.F_SETOWN, -os.getpgrp())
    new_reader, new_writer = round_trip(reader, writer)
    assert fcntl.fcntl(new_reader, fcntl.F_GETOWN) == os.getpid()
    assert fcntl.fcntl(new_reader, fcntl.F_GETSIG) == signal.SIGRTMIN + 1
    assert struct.unpack("ii", fcntl.fcntl(new_writer, 16, bytes(8))) == (2, os.getpgrp())
    os.close(reader)
    os.close(writer)


def test_owner_set_by_another_user(round_trip: RoundTrip) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    reader, writer = os.pipe()
    os.setresuid(-1, 1234, -1)
    try:
        fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
    finally:
        os.setresuid(-1, 0, -1)
    new_reader, _ = round_trip(reader, writer)
    assert struct.unpack("II", fcntl.fcntl(new_reader, 17, bytes(8))) == (0, 1234)
    assert os.getresuid() == (0, 0, 0)
    os.close(reader)
    os.close(writer)


def test_fifo(round_trip: RoundTrip, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    fcntl.fcntl(both, 1031, 8192)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"content")
    fds = [writer, both, reader]
    # The original must be gone: who opens the name again gets the same FIFO.
    pairs = [(fdinfo.read("self", fd).status_flags, fd) for fd in fds]
    new = round_trip(*fds)
    for (flags, fd), made in zip(pairs, new, strict=True):
        assert oct(fdinfo.read("self", made).status_flags) == oct(flags)
        os.close(fd)
    assert fcntl.fcntl(new[1], 1032) == 8192
    assert os.read(new[2], 100).startswith(b"content")


def test_packets_that_do_not_add_up(round_trip: RoundTrip, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe2(os.O_DIRECT)
    os.write(writer, b"one")

    def lie(dump: Dump) -> None:
        for entry in dump.state["file extras"].values():
            entry.packets.append(1)
        original(dump)

    original = description.write_extras
    monkeypatch.setattr(description, "write_extras", lie)
    with pytest.raises(ImageError, match="do not add up"):
        round_trip(reader, writer)
    os.close(reader)
    os.close(writer)
