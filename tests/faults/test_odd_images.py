# SPDX-License-Identifier: Apache-2.0
"""Images cut at every length, and things that are no images in their places: read, checked and planned without a
kernel, each ends in sentences, with little memory.

TORPOR_CUTS=all cuts at every length (pages, where only the number of bytes counts, at each page's end and beside it:
some 33,000 cuts); else within the header, and at some.
"""

import os
import resource
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest

from faults.trees import Checkpoint
from torpor.check_images import ImagesReport, look
from torpor.images import kinds
from torpor.images.container import encode_entries, start_of
from torpor.images.directory import MAX_IMAGE, ImageReader
from torpor.images.pages import PAGE_SIZE
from torpor.images.schema.constants import TaskState
from torpor.images.schema.fdinfo import FileEntry
from torpor.images.schema.pstree import PstreeEntry
from torpor.options import Options

ALL = os.environ.get("TORPOR_CUTS") == "all"
MEMORY = 256 << 20  # beside what the test has already
SPARSE = 1 << 40
NOBODY = 65534


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    yield Checkpoint(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def spoilt(checkpoint: Checkpoint, template: None, tmp_path: Path) -> Iterator[Path]:
    """A copy of the images, and no more memory than a little."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    target = Path(shutil.copytree(checkpoint.images, tmp_path / "spoilt"))
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield target
    resource.setrlimit(resource.RLIMIT_AS, before)


def looked_at(images: Path) -> ImagesReport:
    """Load, check and plan; what is wrong is in the report, anything else is raised."""
    report = look(Options(images_dir=str(images), manage_cgroups="ignore"))
    assert all(one.what and one.why is not None for one in report.obstacles), report.obstacles
    assert report.facts() and report.lines()
    return report


def codes(report: ImagesReport) -> list[str]:
    return [one.code for one in report.obstacles if one.code != "pid-taken"]


def images_of(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.suffix == ".img")


def cuts(size: int, pages: bool) -> list[int]:
    if pages and ALL:
        return sorted(
            {at + near for at in range(0, size + 1, PAGE_SIZE) for near in (-1, 0, 1) if 0 <= at + near < size}
        )
    stride = 1 if ALL else max(1, size // 12)
    return sorted({*range(min(size, 9)), *range(0, size, stride), size - 1})


def test_cut(checkpoint: Checkpoint, spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tried = refused = 0
    for path in images_of(spoilt):
        whole = path.read_bytes()
        for length in cuts(len(whole), path.name.startswith("pages-")) if whole else []:
            path.write_bytes(whole[:length])
            try:
                refused += bool(codes(looked_at(spoilt)))
            except BaseException as error:
                error.add_note(f"{path.name}, cut to {length} of {len(whole)} bytes")
                raise
            tried += 1
        path.write_bytes(whole)
    with capsys.disabled():
        print(f"\n{tried} images cut short: {refused} refused, the others hold whole messages")
    assert refused > tried // 2
    assert codes(looked_at(spoilt)) == []


def _device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, SPARSE)


def _large(path: Path) -> None:
    path.touch()
    os.truncate(path, MAX_IMAGE)


def _large_after(path: Path) -> None:
    path.write_bytes(path.with_name(f"{path.name}.whole").read_bytes())
    os.truncate(path, MAX_IMAGE)


def _sparse_after(path: Path) -> None:
    path.write_bytes(path.with_name(f"{path.name}.whole").read_bytes())
    os.truncate(path, SPARSE)


def _foreign(path: Path) -> None:
    shutil.copy(path.with_name(f"{path.name}.whole"), path)
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "thing", [_device, _sparse, _sparse_after, _large, _large_after, _foreign], ids=lambda thing: thing.__name__[1:]
)
def test_in_its_place(checkpoint: Checkpoint, spoilt: Path, thing: Callable[[Path], None]) -> None:
    """Of each image in turn: a device node, a sparse file of 1 TB and of 1 GiB (alone, and after what belongs there),
    and the image itself in another user's name, which is as good as any."""
    for path in images_of(spoilt):
        whole = path.with_name(f"{path.name}.whole")
        path.rename(whole)
        try:
            thing(path)
            found = codes(looked_at(spoilt))
        except BaseException as error:
            error.add_note(f"{path.name}")
            raise
        if thing is _foreign:
            assert found == [], path.name
        elif thing is not _sparse_after and path.name in ("inventory.img", "pstree.img", "files.img"):
            assert found, path.name
        path.unlink()
        whole.rename(path)
    assert codes(looked_at(spoilt)) == []


def test_a_thread_named_often(spoilt: Path) -> None:
    """Thousands of times: its core is not read as often."""
    with ImageReader.open(str(spoilt)) as images:
        root, *others = images.entries(kinds.PSTREE)
    other = next(one for one in (root, *others) if len(one.threads) > 1)
    more = [
        PstreeEntry(pid=pid, ppid=root.pid, pgid=root.pgid, sid=root.sid, threads=[pid] + [other.threads[1]] * 1000)
        for pid in range(100_000, 100_100)
    ]
    data = [start_of(kinds.PSTREE), *encode_entries([root, *others, *more])]
    (spoilt / kinds.PSTREE.file_name()).write_bytes(b"".join(data))
    for one in more:
        for kind in (kinds.CORE, kinds.IDS, kinds.FS):
            shutil.copy(spoilt / kind.file_name(root.pid), spoilt / kind.file_name(one.pid))
    started = time.process_time()
    report = looked_at(spoilt)
    assert "is there twice" in str(report.obstacles[0])
    assert time.process_time() - started < 2


def test_a_zombies_thread(spoilt: Path) -> None:
    """CRIU 4.1 says any number, of several zombies the same."""
    with ImageReader.open(str(spoilt)) as images:
        entries = images.entries(kinds.PSTREE)
        states = {entry.pid: images.one(kinds.CORE, entry.pid).tc.task_state for entry in entries}
    zombie = next(entry for entry in entries if states[entry.pid] == TaskState.DEAD)
    zombie.threads = [0]
    greatest = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    free = next(pid for pid in range(greatest, 0, -1) if not os.path.exists(f"/proc/{pid}"))
    other = PstreeEntry(pid=free, ppid=zombie.ppid, pgid=zombie.pgid, sid=zombie.sid, threads=[0])
    shutil.copy(spoilt / kinds.CORE.file_name(zombie.pid), spoilt / kinds.CORE.file_name(other.pid))
    data = [start_of(kinds.PSTREE), *encode_entries([*entries, other])]
    (spoilt / kinds.PSTREE.file_name()).write_bytes(b"".join(data))
    assert codes(looked_at(spoilt)) == []


def changed_files(spoilt: Path, change: Callable[[FileEntry], bool]) -> ImagesReport:
    """With the first entry of files.img that could be changed; it must be told by one thing that is in the way."""
    with ImageReader.open(str(spoilt)) as images:
        entries = [deepcopy(entry) for entry in images.entries(kinds.FILES)]
    assert any(change(entry) for entry in entries)
    data = [start_of(kinds.FILES), *encode_entries(entries)]
    (spoilt / kinds.FILES.file_name()).write_bytes(b"".join(data))
    report = looked_at(spoilt)
    assert codes(report) == ["bad-image"], report.obstacles
    return report


def test_a_fifo_without_its_file(spoilt: Path) -> None:
    def change(entry: FileEntry) -> bool:
        if entry.fifo is not None:
            entry.fifo.regf_id = None
        return entry.fifo is not None

    assert "its file None is missing" in str(changed_files(spoilt, change).obstacles)


@pytest.mark.parametrize("field,value", [("pid", 1 << 31), ("signum", 65), ("signum", 1 << 31), ("pid_type", 3)])
def test_an_impossible_owner(spoilt: Path, field: str, value: int) -> None:
    def change(entry: FileEntry) -> bool:
        if entry.pipe is not None:
            setattr(entry.pipe.fown, field, value)
        return entry.pipe is not None

    assert "an impossible receiver" in str(changed_files(spoilt, change).obstacles)


def test_a_unix_socket_with_an_impossible_option(spoilt: Path) -> None:
    with ImageReader.open(str(spoilt)) as images:
        sockets = {entry.id for entry in images.entries(kinds.FILES) if entry.usk is not None}
        entries = [deepcopy(entry) for entry in images.entries(kinds.TORPOR_FILES)]
    for number in (1 << 31, 26):  # SO_ATTACH_FILTER
        for entry in entries:
            if entry.id in sockets:
                entry.option_numbers, entry.option_values = [number], [1]
        data = [start_of(kinds.TORPOR_FILES), *encode_entries(entries)]
        (spoilt / kinds.TORPOR_FILES.file_name()).write_bytes(b"".join(data))
        assert f"impossible option {number}" in str(looked_at(spoilt).obstacles)
