# SPDX-License-Identifier: Apache-2.0
"""``restore --pidfile``: the root's PID; where it cannot be written, nothing is restored."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import torpor

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Dumped:
    def __init__(self, directory: Path) -> None:
        self.images = directory / "images"
        self.images.mkdir()
        victim = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL)
        self.pid = victim.pid
        torpor.dump(self.pid, self.images, manage_cgroups="ignore")
        victim.wait()

    def restore(self, work: Path, name: str) -> None:
        # Its parent is this process, which collects it.
        torpor.restore(self.images, work_dir=work, pidfile=name, restore_sibling=True, manage_cgroups="ignore")

    def refused(self, work: Path, name: str, words: str) -> None:
        before = {path.name: path.read_bytes() for path in work.iterdir()}
        with pytest.raises(torpor.KernelError) as caught:
            self.restore(work, name)
        assert words in str(caught.value)
        assert not os.path.exists(f"/proc/{self.pid}")
        assert {path.name: path.read_bytes() for path in work.iterdir()} == before


@pytest.fixture
def dumped(tmp_path: Path) -> Dumped:
    return Dumped(tmp_path)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system without room for a byte."""
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "torpor-test", place], check=True)
    (place / "filling").write_bytes(bytes(4096))
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("absolute", [False, True])
def test_written(dumped: Dumped, tmp_path: Path, absolute: bool) -> None:
    (work := tmp_path / "work").mkdir()
    path = tmp_path / "elsewhere" if absolute else work / "pid"
    dumped.restore(work, str(path) if absolute else "pid")
    os.kill(dumped.pid, signal.SIGKILL)
    os.waitpid(dumped.pid, 0)
    assert path.read_text() == str(dumped.pid)
    assert path.stat().st_mode & 0o777 == 0o600


def test_there_already(dumped: Dumped, tmp_path: Path) -> None:
    """A file, or a link to nowhere, through which nothing is written.  That is said before anything is made."""
    (work := tmp_path / "work").mkdir()
    (work / "pid").write_text("1")
    log = tmp_path / "log"
    with pytest.raises(torpor.KernelError, match="PID file"):
        torpor.restore(dumped.images, work_dir=work, pidfile="pid", manage_cgroups="ignore", log_file=log, verbosity=4)
    assert "check: " in log.read_text() and "tree: " not in log.read_text()
    dumped.refused(work, "pid", "remove it, or name another")
    (work / "pid").unlink()
    (work / "pid").symlink_to(tmp_path / "nowhere")
    with pytest.raises(torpor.KernelError, match="remove it"):
        dumped.restore(work, "pid")
    assert not (tmp_path / "nowhere").exists()


def test_no_such_directory(dumped: Dumped, tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    dumped.refused(work, "no/pid", "No such file or directory (ENOENT); name another")


def test_no_room(dumped: Dumped, full: Path) -> None:
    dumped.refused(full, "pid", "cannot write the PID file")
