# SPDX-License-Identifier: Apache-2.0
"""Files on their way to the disk: each is waited for, once, and what goes wrong with one of them is told."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torpor.images import to_disk

NAMES = [f"core-{number}.img" for number in range(200)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    for name in NAMES:
        (tmp_path / name).write_bytes(b"an image")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def name_of(fd: int) -> str:
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


@pytest.fixture
def syncing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    return lambda instead: monkeypatch.setattr(os, "fsync", instead)


@pytest.mark.parametrize("number", [0, 1, 7, 8, 16, 17, 100, 200])
def test_every_file_is_synced_once(number: int, folder: int, syncing: Callable[..., None]) -> None:
    synced: list[str] = []
    syncing(lambda fd: synced.append(name_of(fd)))
    before = os.listdir("/proc/self/fd")
    to_disk.sync_files(folder, NAMES[:number])
    assert sorted(synced) == sorted(NAMES[:number])
    assert os.listdir("/proc/self/fd") == before


def test_many_are_waited_for_side_by_side(folder: int, syncing: Callable[..., None]) -> None:
    together = threading.Barrier(to_disk.THREADS, timeout=20)
    syncing(lambda _: together.wait())  # one alone would wait in vain
    to_disk.sync_files(folder, NAMES)


@pytest.mark.parametrize("wrong", [0, 1, 100, 199])
def test_the_error_of_any_file_is_told(wrong: int, folder: int, syncing: Callable[..., None]) -> None:
    def sync(fd: int) -> None:
        if name_of(fd) == NAMES[wrong]:
            raise OSError(errno.EIO, "lost")

    syncing(sync)
    with pytest.raises(OSError, match="lost") as told:
        to_disk.sync_files(folder, NAMES)
    assert told.value.filename == NAMES[wrong]


def test_a_file_that_went_is_told(folder: int, tmp_path: Path) -> None:
    (tmp_path / NAMES[150]).unlink()
    with pytest.raises(FileNotFoundError):
        to_disk.sync_files(folder, NAMES)


@pytest.mark.parametrize("more", [0, 1, 3])
def test_no_more_threads(more: int, folder: int, syncing: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a limit allows no more threads, fewer do it, or we alone."""
    synced: list[str] = []
    syncing(lambda fd: synced.append(name_of(fd)))
    start, started = to_disk.start_new_thread, iter(range(more))

    def start_some(*args: Any) -> int:
        if next(started, None) is None:
            raise RuntimeError("can't start new thread")
        return start(*args)

    monkeypatch.setattr(to_disk, "start_new_thread", start_some)
    to_disk.sync_files(folder, NAMES)
    assert sorted(synced) == sorted(NAMES)
