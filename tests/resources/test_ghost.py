# SPDX-License-Identifier: Apache-2.0
"""Files whose name is gone: ghosts, and those with other names left."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filekit import Saved, look, opened, remap

from torpor.errors import ImageError, Refusal, RestoreFailed
from torpor.images import kinds
from torpor.images.directory import ImageReader, ImageWriter
from torpor.images.payloads import ghost_chunk
from torpor.images.schema.ghost_file import GhostFileEntry
from torpor.images.schema.remap_file_path import RemapFilePathEntry
from torpor.resources import ghost, unlinked


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "images", {})


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory that must be as before when the test ends."""
    path = tmp_path / "place"
    path.mkdir()
    yield path
    assert list(path.iterdir()) == []


def test_everything_of_a_file(saved: Saved, place: Path) -> None:
    fd = opened(place / "gone")
    os.fchown(fd, 1234, 4321)
    os.fchmod(fd, 0o4614)
    second = os.open(place / "gone", os.O_WRONLY | os.O_APPEND)
    (place / "gone").unlink()
    os.utime(fd, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    os.lseek(fd, 3, os.SEEK_SET)
    was = look(fd), look(second)
    now, now2 = saved.save(fd, second).remade()
    assert (look(now), look(now2)) == was
    assert os.fstat(fd).st_atime_ns == 1_000_000_000_123_456_789, "the original was read loudly"
    assert os.fstat(now).st_atime_ns == 1_000_000_000_123_456_789
    assert os.fstat(now).st_mtime_ns == 1_100_000_000_987_654_321
    assert os.path.sameopenfile(now, now2)
    assert os.pread(now, 100, 0) == b"content"
    assert remap(saved) == [(ghost.GHOST, 1)] * 2


@pytest.mark.parametrize("size", [0, 1, 12287, 12288, 12289, 100_000])
def test_sizes(saved: Saved, place: Path, size: int) -> None:
    content = bytes(i * 7 % 251 for i in range(size))
    fd = opened(place / "gone", content)
    (place / "gone").unlink()
    (now,) = saved.save(fd).remade()
    assert os.pread(now, size + 1, 0) == content
    with ImageReader.open(str(saved.images)) as images:
        entry = images.open_payload(kinds.GHOST_FILE, 1)[0]
    assert entry.chunks == (True if size >= 12288 else None)


def test_holes(saved: Saved, place: Path) -> None:
    fd = opened(place / "gone", b"")
    os.pwrite(fd, b"a" * 4096, 1 << 20)
    os.pwrite(fd, b"b" * 5000, 3 << 20)
    os.ftruncate(fd, 5 << 20)
    (place / "gone").unlink()
    (now,) = saved.save(fd).remade()
    assert os.fstat(now).st_size == 5 << 20
    assert os.fstat(now).st_blocks <= os.fstat(fd).st_blocks + 16
    assert os.pread(now, 5 << 20, 0) == os.pread(fd, 5 << 20, 0)
    assert (saved.images / "ghost-file-1.img").stat().st_size < 20_000


def test_a_lot_of_data_in_pieces(saved: Saved, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "MOST_SENT", 4000)
    fd = opened(place / "gone", os.urandom(30000))
    (place / "gone").unlink()
    (now,) = saved.save(fd).remade()
    assert os.pread(now, 40000, 0) == os.pread(fd, 40000, 0)


@pytest.mark.parametrize("seconds", [-1000000000, 4102444800, 14000000000])
def test_any_times(saved: Saved, place: Path, seconds: int) -> None:
    fd = opened(place / "gone")
    (place / "gone").unlink()
    os.utime(fd, ns=(seconds * 10**9 + 5, seconds * 10**9 + 7))
    was = os.fstat(fd).st_mtime_ns
    (now,) = saved.save(fd).remade()
    assert os.fstat(now).st_mtime_ns == was


def test_one_ghost_for_all_names(saved: Saved, place: Path) -> None:
    fd = opened(place / "one")
    os.link(place / "one", place / "two")
    two = os.open(place / "two", os.O_RDONLY)
    again = os.open(place / "two", os.O_PATH)
    (place / "one").unlink()
    (place / "two").unlink()
    was = look(fd), look(two), look(again)
    now = saved.save(fd, two, again).remade()
    assert tuple(look(fd) for fd in now) == was
    assert len({os.fstat(fd).st_ino for fd in now}) == 1


def test_other_kinds(saved: Saved, place: Path) -> None:
    (place / "link").symlink_to("somewhere")
    os.mknod(place / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (place / "directory").mkdir(0o705)
    os.chown(place / "link", 12, 34, follow_symlinks=False)
    os.chown(place / "directory", 12, 34)
    fds = [
        os.open(place / "link", os.O_PATH | os.O_NOFOLLOW),
        os.open(place / "null", os.O_RDWR),
        os.open(place / "directory", os.O_RDONLY | os.O_DIRECTORY),
        os.open(place / "directory", os.O_RDONLY),
    ]
    (place / "link").unlink()
    (place / "null").unlink()
    (place / "directory").rmdir()
    was = [look(fd) for fd in fds]
    now = saved.save(*fds).remade()
    assert [look(fd) for fd in now] == was
    assert os.readlink("", dir_fd=now[0]) == "somewhere"
    assert os.path.sameopenfile(now[2], now[3])
    with pytest.raises(FileNotFoundError):
        os.open("new", os.O_CREAT, dir_fd=now[2])


def test_directory_is_gone_too(saved: Saved, place: Path) -> None:
    (place / "a/b/c").mkdir(parents=True)
    fds = [opened(place / "a/b/c/file"), os.open(place / "a/b/c", os.O_RDONLY), os.open(place / "a/b", os.O_PATH)]
    (place / "a/b/c/file").unlink()
    for name in ("a/b/c", "a/b", "a"):
        (place / name).rmdir()
    was = [look(fd) for fd in fds]
    assert [look(fd) for fd in saved.save(*fds).remade()] == was


def test_the_name_is_taken(saved: Saved, tmp_path: Path) -> None:
    fds = []
    for i in range(3):
        fds.append(opened(tmp_path / "name", b"%d" % i))
        (tmp_path / "name").unlink()
    (tmp_path / "name").write_text("somebody else's")
    (tmp_path / "name.torpor").mkdir()
    before = os.stat(tmp_path / "name")
    now = saved.save(*fds).remade()
    assert [os.pread(fd, 10, 0) for fd in now] == [b"0", b"1", b"2"]
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in now] == [f"{tmp_path}/name.torpor2 (deleted)"] * 3
    after = os.stat(tmp_path / "name")
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    assert sorted(os.listdir(tmp_path)) == ["images", "name", "name.torpor"]


def test_longest_name(saved: Saved, tmp_path: Path) -> None:
    name = "ü" * 127
    fd = opened(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).touch()
    (now,) = saved.save(fd).remade()
    assert os.readlink(f"/proc/self/fd/{now}").endswith(".torpor (deleted)")


def test_tmpfile_can_still_be_named(saved: Saved, place: Path) -> None:
    fd = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o604)
    os.write(fd, b"content")
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    new, new2 = saved.save(fd, again).remade()
    was, now = look(fd), look(new)
    assert was.pop("link") != now.pop("link")
    assert now == was and look(new2)["flags"] == look(again)["flags"]
    os.link(f"/proc/self/fd/{new}", place / "named", src_dir_fd=0, follow_symlinks=True)
    assert os.path.samestat(os.fstat(new2), os.stat(place / "named"))
    assert (place / "named").read_bytes() == b"content"
    (place / "named").unlink()


def test_file_systems_without_tmpfile(saved: Saved, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = opened(place / "gone")
    os.link(place / "gone", place / "twin")
    twin = os.open(place / "twin", os.O_RDONLY)
    (place / "gone").unlink()
    (place / "twin").unlink()
    saved.save(fd, twin).write()
    real = os.open

    def without(path: str, flags: int, *args: Any, **keywords: Any) -> int:
        if flags & unlinked.TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args, **keywords)

    restore = saved.restore()
    monkeypatch.setattr(os, "open", without)
    now, now2 = restore.make()
    assert (look(now), look(now2)) == (look(fd), look(twin))
    assert os.pread(now2, 10, 0) == b"content"


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_limit(tmp_path: Path) -> None:
    fd = opened(tmp_path / "gone", b"x" * (1 << 20))
    os.pwrite(fd, b"x", 1 << 21)
    (tmp_path / "gone").unlink()
    size = os.fstat(fd).st_blocks * 512
    with pytest.raises(Refusal, match=f"--ghost-limit {size}") as caught:
        Saved(tmp_path / "images", {}).save(fd)
    assert caught.value.code == "ghost-limit"
    Saved(tmp_path / "images", {"ghost_limit": size}).save(fd)


def test_links_left_need_the_option(saved: Saved, tmp_path: Path) -> None:
    fd = opened(tmp_path / "name")
    os.link(tmp_path / "name", tmp_path / "other")
    (tmp_path / "name").unlink()
    with pytest.raises(Refusal, match="--link-remap") as caught:
        saved.save(fd)
    assert caught.value.code == "link-remap"
    assert sorted(os.listdir(tmp_path)) == ["images", "other"]


# -- images from strangers --------------------------------------------------------------------------------------------


def ghost_image(saved: Saved, entry: GhostFileEntry, content: bytes = b"") -> None:
    dir_fd = os.open(saved.images, os.O_RDONLY)
    writer = ImageWriter(dir_fd)
    writer.names["x"] = None  # the checkpoint that lies there is to stay
    out = writer.open_raw(kinds.GHOST_FILE, 1, entry)
    os.write(out, content)
    os.close(out)
    os.close(dir_fd)


REG = stat.S_IFREG | 0o600


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"mode": stat.S_IFBLK | 0o600, "rdev": os.makedev(8, 0)}, b""),
        ({"mode": stat.S_IFCHR | 0o600, "rdev": os.makedev(1, 1)}, b""),
        ({"mode": stat.S_IFSOCK | 0o600}, b""),
        ({"mode": stat.S_IFLNK | 0o777}, b""),
        ({"mode": stat.S_IFLNK | 0o777, "symlnk_target": "x" * 5000}, b""),
        ({"mode": stat.S_IFDIR | 0o700}, b""),
        ({"mode": REG | 1 << 20}, b""),
        ({"mode": REG, "uid": 0xFFFFFFFF}, b""),
        ({"mode": REG, "chunks": True, "size": 1 << 62}, b""),
        ({"mode": REG, "chunks": True, "size": 100}, ghost_chunk(90, 20) + bytes(20)),
        ({"mode": REG, "chunks": True, "size": 100}, ghost_chunk(0, 50) + bytes(20)),
        ({"mode": REG, "chunks": True, "size": 100}, b"\xff" * 30),
    ],
    ids=str,
)
def test_mangled_ghosts(saved: Saved, place: Path, fields: dict[str, Any], content: bytes) -> None:
    fd = opened(place / "gone")
    (place / "gone").unlink()
    saved.save(fd).write()
    ghost_image(saved, GhostFileEntry(**{"uid": 0, "gid": 0, **fields}), content)
    with pytest.raises(ImageError):
        saved.restore()


def test_missing_ghost(saved: Saved, place: Path) -> None:
    fd = opened(place / "gone")
    (place / "gone").unlink()
    saved.save(fd).write()
    (saved.images / "ghost-file-1.img").unlink()
    with pytest.raises(ImageError, match=r"ghost-file-1\.img is missing"):
        saved.restore()


def test_nothing_is_left_when_it_fails(saved: Saved, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "a/b").mkdir(parents=True)
    fds = [opened(place / "a/b/file"), os.open(place / "a/b/file", os.O_RDONLY), os.open(place / "a", os.O_RDONLY)]
    (place / "a/b/file").unlink()
    (place / "a/b").rmdir()
    (place / "a").rmdir()
    saved.save(*fds).write()
    before = len(os.listdir("/proc/self/fd"))
    calls = 0
    real = unlinked.open_as

    def failing(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **keywords)

    restore = saved.restore()
    monkeypatch.setattr(unlinked, "open_as", failing)
    with pytest.raises(RestoreFailed, match="a/b/file"):
        restore.make()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the reader's directory
    assert list(place.iterdir()) == []
    monkeypatch.setattr(ghost, "fill", failing)
    calls = 1
    with pytest.raises(RestoreFailed):
        saved.restore().make()


def test_remaps_that_make_no_sense(saved: Saved, place: Path) -> None:
    fd = opened(place / "gone")
    (place / "gone").unlink()
    saved.save(fd)
    remaps = ghost.remaps(saved.dump)
    saved.write()
    for wrong in (
        [*remaps, *remaps],
        [RemapFilePathEntry(orig_id=1, remap_id=9, remap_type=ghost.GHOST)],
        [RemapFilePathEntry(orig_id=1, remap_id=9, remap_type=ghost.LINKED)],
    ):
        dir_fd = os.open(saved.images, os.O_RDONLY)
        writer = ImageWriter(dir_fd)
        writer.write(kinds.REMAP_FPATH, wrong)
        os.close(dir_fd)
        with pytest.raises(ImageError):
            saved.restore()


def test_file_of_a_dead_task(saved: Saved, place: Path) -> None:
    fd = opened(place / "gone")
    (place / "gone").unlink()
    saved.save(fd)
    ghost.remaps(saved.dump)[0].remap_type = ghost.PROCFS
    saved.write()
    with pytest.raises(Refusal, match="had ended"):
        saved.restore()
