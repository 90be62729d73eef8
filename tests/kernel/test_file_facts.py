# SPDX-License-Identifier: Apache-2.0
"""What 32-bit machines ask about files with late times, tried on this one: the same answers as Python's own."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from torpor.kernel import file_facts

LATE = 4102444800 * 10**9 + 7  # in 2100


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("path", ["/", "/dev/null", "/proc/self/fd/0", "/etc/passwd", "link"])
def test_as_stat(path: str, follow: bool, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    directory = os.open(tmp_path, os.O_PATH)
    same(file_facts.statx(path, directory, follow), os.stat(path, dir_fd=directory, follow_symlinks=follow))
    os.close(directory)


def same(found: os.stat_result, expected: os.stat_result) -> None:
    for name in (name for name in dir(expected) if name.startswith("st_")):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
    assert tuple(found) == tuple(expected)


def test_where_python_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    (tmp_path / "link").symlink_to("file")
    fd = os.open(path, os.O_RDONLY)
    there = os.open(tmp_path, os.O_PATH)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))

    def overflow(*_: Any, **__: Any) -> None:
        raise OverflowError("timestamp out of range for platform time_t")

    with monkeypatch.context() as changed:
        changed.setattr(os, "utime", overflow)
        file_facts.far_utime(fd, ns=(-1, LATE))
        file_facts.far_utime("link", ns=(5, LATE + 1), dir_fd=there, follow_symlinks=False)
        file_facts.far_utime(str(tmp_path), ns=(6, LATE + 2))
    facts = os.stat(fd), os.lstat(tmp_path / "link"), os.stat(tmp_path)
    assert [(one.st_atime_ns, one.st_mtime_ns) for one in facts] == [(-1, LATE), (5, LATE + 1), (6, LATE + 2)]
    with monkeypatch.context() as changed:
        changed.setattr(os, "stat", fail)
        link, directory = str(tmp_path / "link"), str(tmp_path)
        found = file_facts.far_fstat(fd), file_facts.far_lstat(link), file_facts.far_stat(directory)
        with pytest.raises(FileNotFoundError, match="none"):
            file_facts.far_stat("none", dir_fd=there)
    for one, expected in zip(found, facts, strict=True):
        same(one, expected)
    os.close(fd)
    os.close(there)
