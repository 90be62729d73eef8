# SPDX-License-Identifier: Apache-2.0
"""What a program has written to its files does not get to the disk: the dump fails before anything is ended, and names
the file.  (That it gets there in time: tests/test_durability.py; that it is needed: tests/vm/test_power.py.)"""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torpor
from torpor.images import to_disk
from torpor.kernel.proc import parse_stat

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="freezing needs root")

PROGRAM = """
import mmap, os, signal
own = os.open("own", os.O_RDWR | os.O_CREAT); os.write(own, b"o")
mapped = open("mapped", "wb+"); mapped.truncate(4096)
mapping = mmap.mmap(mapped.fileno(), 4096); mapped.close()
read = open("read", "w"); read.close(); read = open("read")
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "images").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout and running.stdout.readline() == b"ready\n"
        running.stdout.close()
        yield running.pid
        running.send_signal(signal.SIGKILL)


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """fsync of this file fails.  (The engine is forked: what is changed here is changed there.)"""
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == name:
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


def state(pid: int) -> str:
    return parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).state


@pytest.mark.parametrize("leave_running", [False, True], ids=["ends", "goes-on"])
@pytest.mark.parametrize(
    ("name", "number", "code", "remedy"),
    [("own", errno.EIO, "disk", "dmesg"), ("mapped", errno.ENOSPC, "disk-full", "make room on its file system")],
)
def test_the_disk_does_not_take_it(
    program: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, code: str, remedy: str,
    leave_running: bool,
) -> None:  # fmt: skip
    failing(monkeypatch, name, number)
    with pytest.raises(torpor.DumpFailed) as told:
        torpor.dump(program, tmp_path / "images", leave_running=leave_running)
    assert told.value.code == code
    text = str(told.value)
    assert f"task {program} (python" in text and f"({tmp_path / name})" in text and remedy in text
    assert os.strerror(number) in text
    assert os.listdir(tmp_path / "images") == []
    assert state(program) == "S"


def test_the_directory_of_a_name(program: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, tmp_path.name, errno.EIO)
    with pytest.raises(torpor.DumpFailed, match=f"the directory {tmp_path}: names in it do not get to the disk"):
        torpor.dump(program, tmp_path / "images")
    assert state(program) == "S"


def test_what_cannot_be_synced_needs_none(program: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "own", errno.EINVAL)
    torpor.dump(program, tmp_path / "images", leave_running=True)


def test_only_after_the_thaw(program: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that goes on does not wait for the disk."""
    real, log = os.fsync, tmp_path / "log"

    def fsync(fd: int) -> None:
        with log.open("a") as file:
            file.write(f"{os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))} {state(program)}\n")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(to_disk, "THREADS", 1)
    torpor.dump(program, tmp_path / "images", leave_running=True)
    seen = [line.split() for line in log.read_text().splitlines()]
    assert [line for line in seen if line[0] in ("own", "mapped", "read", tmp_path.name)] == [
        ["own", "S"], ["mapped", "S"], [tmp_path.name, "S"],
    ]  # fmt: skip
