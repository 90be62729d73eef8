# SPDX-License-Identifier: Apache-2.0
"""Restores that cannot be: a PID that is taken, no rights, images that are missing, cut short, foreign or mangled.  One
sentence that says why, status 1, and nothing of the tree is left, nor anything else."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.trees import Checkpoint
from faults.victim import run
from harness.events import Nursery
from torpor.images import kinds
from torpor.images.directory import ImageReader, write_small
from torpor.images.schema.mm import MmEntry
from torpor.kernel.process import clone3

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    yield Checkpoint(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def images(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the images, to be spoilt."""
    checkpoint.usable()
    return Path(shutil.copytree(checkpoint.images, tmp_path / "spoilt"))


def refused(checkpoint: Checkpoint, images: Path, *words: str, prefix: tuple[str, ...] = ()) -> str:
    """A restore that must fail and say these words."""
    with Nursery():
        status, text = run("restore", "-d", "-D", images, prefix=prefix)
        outcome = checkpoint.outcome()
    assert status == 1 and outcome == "nothing", f"{outcome} is left; {text}"
    assert text.startswith("torpor: ") and "\n" not in text and "a bug" not in text, text
    assert [word for word in words if word not in text] == [], text
    assert checkpoint.left() == []
    return text


def test_no_directory(checkpoint: Checkpoint, tmp_path: Path) -> None:
    refused(checkpoint, tmp_path / "nowhere", "No such file or directory", "nowhere")


def test_no_images(checkpoint: Checkpoint, tmp_path: Path) -> None:
    refused(checkpoint, tmp_path, "no checkpoint", "inventory.img is missing")


def one_of(images: Path, pattern: str) -> Path:
    return sorted(images.glob(pattern))[0]


NEEDED = ["pstree.img", "core-*", "mm-*", "pagemap-[0-9]*", "pages-1.img", "fdinfo-*", "files.img", "fs-*", "memfd.img",
          "ghost-file-*"]  # fmt: skip


@pytest.mark.parametrize("pattern", NEEDED)
def test_missing(checkpoint: Checkpoint, images: Path, pattern: str) -> None:
    path = one_of(images, pattern)
    path.unlink()
    refused(checkpoint, images)


@pytest.mark.parametrize("pattern", [*NEEDED, "inventory.img", "torpor-[0-9]*", "sk-queues.img", "pipes-data.img"])
def test_truncated(checkpoint: Checkpoint, images: Path, pattern: str) -> None:
    """In the middle of something; the last byte alone."""
    path = one_of(images, pattern)
    size = path.stat().st_size
    for kept in (size // 2 + 1, size - 1):
        os.truncate(path, kept)
        refused(checkpoint, images)


@pytest.mark.parametrize("pattern", ["core-*", "mm-*", "fs-*", "torpor-[0-9]*"])
def test_without_its_entry(checkpoint: Checkpoint, images: Path, pattern: str) -> None:
    """What says of what kind it is, and no more: that is not the same as no image."""
    path = one_of(images, pattern)
    os.truncate(path, 8)
    refused(checkpoint, images, path.name, "has no entry")


def _text(path: Path) -> None:
    path.write_text("These are not the images you are looking for.\n")


def _other(path: Path) -> None:
    path.write_bytes((path.parent / "seccomp.img").read_bytes())


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    """To a file that is not in this directory: it is not followed."""
    moved = path.parent.parent / path.name
    path.rename(moved)
    path.symlink_to(moved)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [_text, _other, _directory, _link, _fifo], ids=lambda change: change.__name__[1:])
@pytest.mark.parametrize("pattern", ["inventory.img", "pstree.img", "core-*", "pagemap-[0-9]*"])
def test_foreign_image(checkpoint: Checkpoint, images: Path, pattern: str, change: Callable[[Path], None]) -> None:
    path = one_of(images, pattern)
    change(path)
    refused(checkpoint, images, path.name)


def test_foreign_architecture(checkpoint: Checkpoint, images: Path) -> None:
    """Every core image says which machine it is of: its first field."""
    for path in images.glob("core-*"):
        data = bytearray(path.read_bytes())
        assert data[12] == 0x08, "the field mtype comes first"
        data[13] = 2 if data[13] != 2 else 1
        path.write_bytes(data)
    with changed_mm(images) as mm:
        mm.vmas[-1].end = 1 << 60  # another machine's addresses look impossible here, and are not what is wrong
    text = refused(checkpoint, images, "another architecture (armv7l)" if os.uname().machine == "x86_64" else "another")
    assert "mangled" not in text


def test_other_byte_order(checkpoint: Checkpoint, images: Path) -> None:
    """Images of s390x on any other machine, or the other way round: to copy them again would not help."""
    path = images / "inventory.img"
    data = path.read_bytes()
    path.write_bytes(data[3::-1] + data[7:3:-1] + data[8:])
    text = refused(checkpoint, images, "byte order", "a machine like the one that it comes from")
    assert "copy" not in text


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86_64's addresses")
def test_addresses_that_this_cpu_does_not_have(checkpoint: Checkpoint, images: Path) -> None:
    """Of a CPU with five levels of page tables: tests/vm/test_update.py has a real one."""
    with changed_mm(images) as mm:
        stack = next(area for area in mm.vmas if area.flags & 0x100)
        stack.end += 1 << 55
        stack.start += 1 << 55
        mm.vmas.sort(key=lambda area: area.start)
    if " la57 " in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has them")
    text = refused(checkpoint, images, "further up than this machine's programs can have any")
    assert "mangled" not in text


@contextmanager
def changed_mm(images: Path) -> Iterator[MmEntry]:
    path = one_of(images, "mm-*")
    pid = int(path.stem.partition("-")[2])
    with ImageReader.open(str(images)) as reader:
        entry = reader.one(kinds.MM, pid)
        yield entry
        write_small(reader.dir_fd, kinds.MM, entry, pid)


def test_mangled_sizes(checkpoint: Checkpoint, images: Path) -> None:
    """A length of four gigabytes in front of the first entry: nothing is read because a length says so."""
    for pattern in ("pstree.img", "files.img", "mm-*"):
        path = one_of(images, pattern)
        data = path.read_bytes()
        path.write_bytes(data[:8] + b"\xff\xff\xff\xff" + data[12:])
        refused(checkpoint, images, path.name, "mangled")
        path.write_bytes(data)


@pytest.mark.parametrize("which", ["root", "thread"])
def test_pid_taken(checkpoint: Checkpoint, which: str) -> None:
    """By another process, since: it is named, and not harmed."""
    checkpoint.usable()
    wanted = checkpoint.root if which == "root" else next(tid for tid in checkpoint.tids if tid not in checkpoint.pids)
    taker = clone3(exit_signal=signal.SIGCHLD, set_tid=[wanted])
    if taker == 0:
        while True:
            signal.pause()
    try:
        status, text = run("restore", "-d", "-D", checkpoint.images)
        assert status == 1 and f"PID {wanted} is taken" in text and "\n" not in text, text
        assert [pid for pid in checkpoint.living() if pid != wanted] == [] and checkpoint.left() == []
        assert os.waitpid(taker, os.WNOHANG) == (0, 0)
    finally:
        os.kill(taker, signal.SIGKILL)
        os.waitpid(taker, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_no_rights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As an ordinary user: to the images; and, where they may be read, to bring the tree back."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o11)
    checkpoint.usable()
    refused(checkpoint, checkpoint.images, "Permission denied", prefix=NOBODY)
    images = Path(shutil.copytree(checkpoint.images, tmp_path / "readable"))
    images.chmod(0o755)
    refused(checkpoint, images, "inventory.img cannot be read: Permission denied; images are for who", prefix=NOBODY)
    subprocess.run(["chmod", "-R", "a+rX", images], check=True)
    text = refused(checkpoint, images, prefix=NOBODY)
    assert "ermi" in text or "root" in text, text  # permission, permitted


def test_noise(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A directory of somebody else's things: refused, and left as it is."""
    (tmp_path / "inventory.img").write_bytes(os.urandom(1000))
    (tmp_path / "precious").touch()
    before = sorted(tmp_path.iterdir())
    refused(checkpoint, tmp_path, "inventory.img")
    assert sorted(tmp_path.iterdir()) == before
