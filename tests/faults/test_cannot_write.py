# SPDX-License-Identifier: Apache-2.0
"""Images that cannot be written: a clear sentence, status 1, the victim unharmed, nothing that looks like a dump."""

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import torpor
from faults.victim import Victim, dump
from harness.events import Nursery

MEGABYTES = 4


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim.of(MEGABYTES) as running:
        yield running


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with these options."""
    place = tmp_path / "mounted"
    place.mkdir()
    done: list[Path] = []

    def mount(options: str) -> Path:
        if os.geteuid():
            pytest.skip("mounting needs root")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "torpor-test", place], check=True)
        done.append(place)
        return place

    yield mount
    for path in done:
        subprocess.run(["umount", path], check=True)  # fails where somebody holds a file in it still


def refused(victim: Victim, images: Path, *words: str, options: tuple[str, ...] = ("--leave-running",)) -> str:
    """A dump that must fail and say these words, in one sentence that is no bug."""
    with Nursery():
        status, text = dump(victim.pid, images, *options)
    assert status == 1, text
    assert "a bug" not in text and "Traceback" not in text, text
    for word in words:
        assert word in text, text
    *before, text = text.splitlines()
    assert text.startswith("torpor: ") and all(line.startswith("Warn: ") for line in before), before
    assert not (images.is_dir() and (images / "inventory.img").exists())
    assert victim.harm("signals") == []
    return text


def _blocks(images: Path) -> int:
    return sum((path.stat().st_size + 4095) // 4096 for path in images.iterdir())


def test_disk_full(victim: Victim, tmp_path: Path, mounted: Callable[[str], Path]) -> None:
    """Room for nothing, for some of the pages, for all pages, for all but the inventory."""
    whole = tmp_path / "whole"
    whole.mkdir()
    status, text = dump(victim.pid, whole, "--leave-running")
    assert status == 0, text
    blocks = _blocks(whole)
    images = mounted("size=4k")
    for size in (1, 3, blocks // 2, *range(blocks - 60, blocks, 6)):
        subprocess.run(["mount", "-o", f"remount,size={4 * size}k", images], check=True)
        for options in (("--leave-running",), ()) if size in (1, blocks // 2, blocks - 6) else (("--leave-running",),):
            refused(victim, images, f"to {images}: No space left on device", "make room", options=options)
            assert list(images.iterdir()) == [], "a failed dump leaves nothing that takes room"


def test_no_inodes_left(victim: Victim, mounted: Callable[[str], Path]) -> None:
    refused(victim, mounted("size=64m,nr_inodes=9"), "No space left on device")


def test_read_only(victim: Victim, mounted: Callable[[str], Path]) -> None:
    images = mounted("size=64m")
    subprocess.run(["mount", "-o", "remount,ro", images], check=True)
    refused(victim, images, "cannot write", str(images))


def test_immutable(victim: Victim) -> None:
    """A directory that even root may not write to."""
    refused(victim, Path("/proc/self/task"), "cannot write", "/proc/self/task")


def test_missing(victim: Victim, tmp_path: Path) -> None:
    refused(victim, tmp_path / "missing", "No such file or directory", "missing")


def test_a_file(victim: Victim, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    refused(victim, path, "Not a directory")


def test_a_fifo(victim: Victim, tmp_path: Path) -> None:
    """Opening one waits for a reader, if one is not careful."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    refused(victim, path, "Not a directory")


def test_a_link_to_nowhere(victim: Victim, tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "missing")
    refused(victim, path, "No such file or directory")


def test_directory_in_the_way(victim: Victim, tmp_path: Path) -> None:
    """Something that is no file has the name of an image."""
    images = tmp_path / "images"
    (images / "pages-1.img").mkdir(parents=True)
    (images / "pages-1.img" / "precious").touch()
    refused(victim, images, "pages-1.img")
    assert (images / "pages-1.img" / "precious").exists()


def test_not_mine(victim: Victim, tmp_path: Path) -> None:
    """A user without rights to the directory; root needs no rights, so it is another's dump as another."""
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    os.chmod(tmp_path, 0o755)
    from faults.victim import run

    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    status, text = run("dump", "-t", str(victim.pid), "-D", images, prefix=nobody)
    assert status == 1 and "Permission denied" in text and "\n" not in text, text
    assert victim.harm() == []


def _limited(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("limit", [0, 4096, 1 << 20, 5 << 20, 64 << 20])
def test_file_size_limit_of_the_victim(tmp_path: Path, limit: int) -> None:
    """The victim writes its own pages; its limit must neither be met (SIGXFSZ would end it) nor stop the dump."""
    with Victim.of(MEGABYTES, setup=_limited(limit)) as limited:
        with Nursery():
            status, text = dump(limited.pid, tmp_path, "--leave-running")
        assert status == 0, text
        assert limited.harm("signals") == []


def test_file_size_limit_of_torpor(victim: Victim, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    from faults.victim import run

    status, text = run("dump", "-t", str(victim.pid), "-D", images, "-R", prefix=("prlimit", "--fsize=1024", "--"))
    assert status == 1 and "File too large" in text and "a bug" not in text, text
    assert victim.harm("signals") == []
    assert not (images / "inventory.img").exists()


def test_memory_cgroup_of_the_images(victim: Victim, tmp_path: Path) -> None:
    """Images in memory are charged to whoever writes them: a victim at its limit is not killed for that."""
    group = Path("/sys/fs/cgroup/memory") / f"torpor-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group can be made: {error.strerror}")
    images = Path("/dev/shm") / f"torpor-{os.getpid()}"
    images.mkdir(mode=0o700)
    try:
        (group / "memory.limit_in_bytes").write_text(str(24 << 20))
        with Victim.of(16, setup=lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) as limited:
            with Nursery():
                status, text = dump(limited.pid, images, "--leave-running")
            alive = limited.process.poll() is None
            assert alive, f"the victim was killed ({limited.process.returncode}); torpor said: {text}"
            assert limited.harm("signals") == []
            assert status == 0 or "emory" in text, text
    finally:
        subprocess.run(["rm", "-r", images], check=True)
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        group.rmdir()


def test_the_disk_fails_at_the_end(victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written does not get to the disk, of which only fsync(2) tells: the file is named, nothing is left."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(torpor.DumpFailed, match=rf"cannot write \S+\.img to .*{tmp_path}.*Input/output error"):
        torpor.dump(victim.pid, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert victim.harm("signals") == []


def test_a_descriptor_is_no_image(tmp_path: Path) -> None:
    """What fails for one of the task's descriptors is not laid to the images directory, nor to a full disk."""
    from torpor.dump import _explain

    session: Any = SimpleNamespace(options=SimpleNamespace(images_dir=str(tmp_path)))
    told = str(_explain(OSError(errno.EOVERFLOW, "", "3"), session))
    assert "the dump failed: Value too large for defined data type (3)" in told and "-D" not in told
    assert f"cannot write core-3.img to {tmp_path}" in str(_explain(OSError(errno.EIO, "", "core-3.img"), session))
