# SPDX-License-Identifier: Apache-2.0
"""The log, and progress."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torpor import log, progress
from torpor.errors import TorporError

from .conftest import SOURCE


def test_levels(tmp_path: Path) -> None:
    for level, said in enumerate(["", "e", "ew", "ewi", "ewid"]):
        path = tmp_path / str(level)
        with log.opened(str(path), level):
            log.error("e")
            log.warning("w")
            log.info("i")
            log.debug("d")
        lines = path.read_text().splitlines()
        assert "".join(line[-1] for line in lines) == said
        assert path.stat().st_mode & 0o777 == 0o600


def test_stamps(tmp_path: Path) -> None:
    with log.opened(str(tmp_path / "log"), log.INFO):
        log.error("late")
    assert re.fullmatch(r"\(00\.\d{6}\) Error: late\n", (tmp_path / "log").read_text())


def test_names_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    with log.opened(str(tmp_path / "log"), log.WARNING):
        log.warning("two\nlines\x1b[2J")
    assert (tmp_path / "log").read_text() == "Warn: two\nlines\\x1b[2J\n"


def test_nothing_is_written_while_held(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with log.opened(str(path), log.DEBUG):
        log.hold()
        log.info("one")
        log.error("two")
        assert log.held()
        assert not path.read_text()
        log.release()
        assert [line.split()[-1] for line in path.read_text().splitlines()] == ["one", "two"]
        log.hold()
        log.info("three")
    assert path.read_text().endswith("three\n")
    assert not log.held()


def test_silent_without_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    with log.opened(None, log.DEBUG):
        log.error("nobody asked")
    log.error("outside")
    assert capfd.readouterr() == ("", "")


def test_stderr_and_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with log.opened(None, log.WARNING, stderr=True):
        log.warning("careful")
    with log.opened("-", log.WARNING):
        log.warning("here")
    assert capfd.readouterr() == ("Warn: here\n", "Warn: careful\n")


def test_a_log_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(TorporError) as caught, log.opened(str(tmp_path / "no/log"), 2):
        pass
    assert caught.value.code == "no-log"


def test_a_fifo(tmp_path: Path) -> None:
    """One that nobody reads is told, and does not hang; one that somebody reads is written to."""
    os.mkfifo(path := str(tmp_path / "fifo"))
    with pytest.raises(TorporError, match="nobody reads it"), log.opened(path, 2):
        pass
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with log.opened(path, log.WARNING):
        log.warning("heard")
    assert os.read(reader, 100) == b"Warn: heard\n"
    os.close(reader)


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with log.opened("/dev/full", log.DEBUG):
        log.error("lost")


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (1023, "1023 bytes"), (1.02 * 2**30, "1.02 GiB"), (2**40, "1.00 TiB"),
                         (300 << 20, "300 MiB"), (2**52, "4096 TiB")]
)  # fmt: skip
def test_quantities(count: float, words: str) -> None:
    assert progress.quantity(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.012, "12 ms"), (0.0031, "3.1 ms"), (0.31, "0.31 s"), (12.34, "12.3 s"), (250, "4 min 10 s")],
)
def test_durations(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_a_line_of_progress() -> None:
    with progress.Progress("writing memory", 100 << 20) as shown:
        shown.done = 50 << 20
        assert shown.line(2) == "writing memory: 50.0 MiB of 100 MiB, 25.0 MiB/s, 2.00 s left"


def test_progress_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setattr(progress, "INTERVAL", 0)
    master, slave = pty.openpty()
    theirs, ours = os.pipe()
    os.set_blocking(master, False)
    os.set_blocking(theirs, False)
    with log.opened(str(tmp_path / "log"), log.WARNING):
        with progress.Progress("reading", 10, fd=ours) as shown:
            shown.add(5)
        with pytest.raises(BlockingIOError):
            os.read(theirs, 100)
        with progress.Progress("reading", 10, fd=slave) as shown:
            shown.add(5)
            assert b"reading: 5 bytes of 10 bytes" in os.read(master, 1000)
            log.hold()
            shown.add(2)
            with pytest.raises(BlockingIOError):
                os.read(master, 1000)
            log.release()
        assert os.read(master, 1000).strip(b"\r ") == b""
        with progress.Progress("reading", 0, fd=slave, terminal_is_safe=True) as shown:
            began = time.monotonic()
            for _ in range(20_000):  # nobody reads the terminal: it fills up
                shown.add(1)
            assert time.monotonic() - began < 5
    for fd in (master, slave, theirs, ours):
        os.close(fd)


def test_a_reader_that_leaves_does_not_matter(tmp_path: Path) -> None:
    """torpor dump -o /dev/stdout | head: the work is done, whoever listens."""
    victim = subprocess.Popen(["sleep", "60"], start_new_session=True)
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "torpor", "dump", "-t", str(victim.pid), "-D", str(tmp_path), "-v4"]
    try:
        for log_file in ("/dev/stdout", "-", None):
            more = ["-o", log_file] if log_file else []
            done = subprocess.run(
                [*command, "-R", *more],
                stdout=write_end,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
            )
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "inventory.img").exists()
            (tmp_path / "inventory.img").unlink()
    finally:
        victim.kill()
        victim.wait()
        os.close(write_end)
