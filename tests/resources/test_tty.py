# SPDX-License-Identifier: Apache-2.0
"""Terminals: modes as images have them, and queues that are looked at and left as they were."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from filekit import Saved

import torpor
from torpor.errors import ImageError
from torpor.images.schema.tty import TtyDataEntry
from torpor.kernel.polling import poll_events
from torpor.resources import tty_calls, tty_queue
from torpor.resources.description import extra
from torpor.resources.tty_calls import Modes

Pair = tuple[int, int]


@pytest.fixture
def pair() -> Iterator[Pair]:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    os.set_blocking(slave, False)
    yield master, slave
    os.close(master)
    os.close(slave)


def quiet(fd: int) -> None:
    Modes.get(fd).but(lflag=Modes.get(fd).lflag & ~tty_calls.ECHO).set(fd)


def test_modes_and_entry(pair: Pair) -> None:
    _, slave = pair
    modes = Modes.get(slave)
    entry = modes.entry()
    assert len(entry.c_cc) == 19 and entry.c_cc[0] & 0xFF == modes.cc[0]
    for changed in (modes.but(iflag=0), modes.but(cc=bytes(range(1, 20))), modes.but(lflag=0)):
        changed.set(slave)
        back = Modes.of(changed.entry(), modes)
        now = Modes.get(slave)
        for name in ("iflag", "oflag", "cflag", "lflag", "line", "ispeed", "ospeed"):
            assert getattr(back, name) == getattr(now, name)
        assert back.cc == now.cc
        assert termios.tcgetattr(slave)[3] == now.lflag


def test_speeds_that_criu_leaves_out(pair: Pair) -> None:
    modes = Modes.get(pair[1])
    entry = modes.entry()
    entry.c_ispeed = entry.c_ospeed = 0
    assert Modes.of(entry, modes).ospeed == modes.ospeed != 0


def test_raw_queues_stay(pair: Pair) -> None:
    master, slave = pair
    tty.setraw(slave)
    os.write(master, b"ty\3ped\x7f")
    os.write(slave, b"shown\n")
    for _ in range(3):
        assert tty_queue.look(master)[:2] == (b"ty\3ped\x7f", b"shown\n")
    assert os.read(slave, 100) == b"ty\3ped\x7f" and os.read(master, 100) == b"shown\n"


def test_lines_stay_lines(pair: Pair) -> None:
    master, slave = pair
    quiet(slave)
    was = termios.tcgetattr(slave)
    os.write(master, b"one\ntwo\nthre")
    for _ in range(2):
        assert tty_queue.look(master)[:2] == (b"one\ntwo\nthre", b"")
    assert termios.tcgetattr(slave) == was
    assert os.read(slave, 100) == b"one\n" and os.read(slave, 100) == b"two\n"
    with pytest.raises(BlockingIOError):
        os.read(slave, 100)
    os.write(master, b"X\x7fe\n")  # the line goes on, and can be edited
    tty_queue._await(slave, 6)
    assert os.read(slave, 100) == b"three\n"
    with pytest.raises(BlockingIOError):
        os.read(master, 100)  # nothing was echoed


def test_output_is_not_translated_twice(pair: Pair) -> None:
    master, slave = pair
    os.write(slave, b"a\nb\n")
    assert tty_queue.look(master).written == b"a\r\nb\r\n"
    assert os.read(master, 100) == b"a\r\nb\r\n"


@pytest.mark.parametrize("typed", [b"", b"line\n"])
def test_a_stopped_terminal_without_a_key_for_that(pair: Pair, typed: bytes) -> None:
    """Stopped by ^S, which then was made a character like others: it stays stopped, and nothing is typed."""
    master, slave = pair
    os.write(master, typed + b"\x13")
    deadline = time.monotonic() + 5
    while poll_events(slave, select.POLLOUT) and time.monotonic() < deadline:
        time.sleep(0.001)
    was = termios.tcgetattr(slave)
    was[6][termios.VSTOP] = b"\0"
    termios.tcsetattr(slave, termios.TCSANOW, was)
    for _ in range(2):
        assert tty_queue.look(master).stopped == tty_queue.BY_KEY
        assert not poll_events(slave, select.POLLOUT)
        assert termios.tcgetattr(slave) == was
    os.write(master, b"\x11\n")
    assert os.read(slave, 100) == (typed or b"\n")
    assert poll_events(slave, select.POLLOUT)


def test_packet_mode_stays(pair: Pair) -> None:
    master, slave = pair
    tty_calls.set_number(master, termios.TIOCPKT, 1)
    tty.setraw(slave, termios.TCSANOW)
    os.read(master, 100)  # a status byte tells of the new modes
    os.write(slave, b"data")
    assert tty_queue.look(master).written == b"data"
    assert tty_calls.number(master, tty_calls.TIOCGPKT) == 1
    assert os.read(master, 100) == b"\0data"


def test_empty_terminals_are_not_touched(pair: Pair) -> None:
    master, slave = pair
    was = termios.tcgetattr(slave)
    assert tty_queue.look(master)[:2] == (b"", b"")
    assert termios.tcgetattr(slave) == was


def test_window_size(pair: Pair) -> None:
    master, slave = pair
    size = tty_calls.window_size(slave)
    size.ws_row, size.ws_col = 33, 101
    tty_calls.set_window_size(master, size)
    assert os.get_terminal_size(slave) == (101, 33)


GIVES_UP = """
import fcntl, os, pty, termios, time
os.setsid()
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
if os.fork() == 0:
    fcntl.ioctl(slave, termios.TIOCNOTTY)
    print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_terminal_given_up() -> None:
    """A process without the controlling terminal that its session has is refused: it would have it again."""
    with subprocess.Popen([sys.executable, "-c", GIVES_UP], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            report = torpor.check(pid=process.pid)
            assert [error.what for error in report.obstacles if "TIOCNOTTY" in str(error)]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_status_that_waits(pair: Pair) -> None:
    master, slave = pair
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))
    assert not tty_queue.waiting_status(master)
    termios.tcflush(slave, termios.TCIFLUSH)
    assert tty_queue.waiting_status(master)


@pytest.mark.parametrize("lines", [[3, 3], [0] * 5000])
def test_lines_that_do_not_add_up(pair: Pair, tmp_path: Path, lines: list[int]) -> None:
    saved = Saved(tmp_path / "images", {}).save(pair[0])
    saved.dump.state["tty data"] = [TtyDataEntry(tty_id=os.minor(os.fstat(pair[1]).st_rdev) * 2, data=b"typed")]
    extra(saved.dump, saved.ids[0]).typed_lines = lines
    with pytest.raises(ImageError, match="lines do not add up"):
        saved.write().restore()
