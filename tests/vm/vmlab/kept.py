# SPDX-License-Identifier: Apache-2.0
"""Files that are kept in the cache: each is made whole and brought to the disk before it gets its name.

Its size is written down beside it, so that one that was cut short later (or by a host that crashed) is seen for what it
is, and made anew.  Where several make one, each holds the lock of its directory.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAYS = 14  # that a file of another recipe is kept after its last use: another checkout may be at work with it
_RECIPE = re.compile(r"(?P<kind>.+)-(?P<recipe>[0-9a-f]{10})\b")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Nobody else makes anything in `directory` meanwhile."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_whole(path: Path) -> bool:
    """Whether it is there, as long as it was when it was made.  That is a use of it."""
    try:
        whole = path.stat().st_size == int(_size_of(path).read_text())
    except (OSError, ValueError):
        return False
    with contextlib.suppress(OSError):  # it may lie where nobody may write
        os.utime(path)
    return whole


@contextlib.contextmanager
def making(path: Path) -> Iterator[Path]:
    """Where to write what shall be `path`, which gets its name, and only then any, when nothing has failed."""
    partial = path.with_name(f"{path.name}.partial")
    for old in (path, partial):
        old.unlink(missing_ok=True)
    try:
        yield partial
        _size_of(path).write_text(str(partial.stat().st_size))
        for written in (partial, _size_of(path)):
            to_disk(written)
        partial.rename(path)
        to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    _remove_others(path)


@contextlib.contextmanager
def workplace(home: Path) -> Iterator[Path]:
    """A new directory in `home`, for whoever holds its lock.  What a run that was killed has left there goes first."""
    work = home / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def name_tree(partial: Path, path: Path) -> None:
    """The same for a directory and all that is in it, which `partial` is so far."""
    subprocess.run(["sync", "--file-system", str(partial)], check=True)
    partial.rename(path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.size")


def _remove_others(made: Path) -> None:
    """What was made for the same purpose by other recipes (NAME-RECIPE...), unless it was used lately."""
    if not (own := _RECIPE.match(made.name)):
        return
    for other in made.parent.iterdir():
        named = _RECIPE.match(other.name)
        if named and named["kind"] == own["kind"] and named["recipe"] != own["recipe"] and other.suffix != ".size":
            with contextlib.suppress(OSError):
                if other.stat().st_mtime < time.time() - DAYS * 86400:
                    other.unlink()
                    _size_of(other).unlink(missing_ok=True)
