# SPDX-License-Identifier: Apache-2.0
"""What is kept in the cache is whole, or is made anew; what is old goes: vmlab/kept.py and who uses it.  No guests."""

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vmlab import VmError, debian, disk, image, kept, session
from vmlab.debian import Archive
from vmlab.session import Key
from vmlab.targets import TARGETS

S390X = TARGETS["s390x"]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TORPOR_VM_CACHE", str(tmp_path))
    return tmp_path


def make(path: Path, content: str = "all of it") -> Path:
    with kept.making(path) as partial:
        partial.write_text(content)
    return path


def test_what_was_cut_short_is_not_whole(cache: Path) -> None:
    path = cache / "file"
    assert not kept.is_whole(path)
    assert kept.is_whole(make(path)) and path.read_text() == "all of it"
    os.truncate(path, 3)
    assert not kept.is_whole(path)
    assert kept.is_whole(make(path))
    (cache / "file.size").write_text("")
    assert not kept.is_whole(path)


def test_it_is_on_the_disk_before_it_has_a_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: seen.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), path.exists()))
    )
    path = cache / "file"
    make(path)
    assert seen == [("file.partial", False), ("file.size", False), (cache.name, True)]


def test_a_disk_that_is_full_leaves_nothing(cache: Path) -> None:
    make(cache / "file")
    os.truncate(cache / "file", 3)
    with pytest.raises(OSError, match="No space left"), kept.making(cache / "file") as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not kept.is_whole(cache / "file")
    assert {path.name for path in cache.iterdir()} <= {"file.size"}


def test_other_recipes_go_when_nobody_has_used_them_for_long(cache: Path) -> None:
    long_ago = time.time() - 15 * 86400
    names = [
        f"{kind}-{recipe}{suffix}"
        for kind in ("linux-6.1", "linux-6.12", "linux-6.12-64k", "userland") for recipe in ("a" * 10, "b" * 10)
        for suffix in (".cpio", "-512.ext4", ".partial")
    ]  # fmt: skip
    for name in (*names, "lock", "other"):
        (cache / name).write_text("x")
        (cache / f"{name}.size").write_text("1")
        os.utime(cache / name, (long_ago, long_ago))
    assert kept.is_whole(cache / f"linux-6.12-{'a' * 10}.cpio")  # a use
    make(cache / f"linux-6.12-{'c' * 10}.cpio")
    gone = {f"linux-6.12-{'a' * 10}{suffix}" for suffix in ("-512.ext4", ".partial")}
    gone |= {f"linux-6.12-{'b' * 10}{suffix}" for suffix in (".cpio", "-512.ext4", ".partial")}
    here = {path.name for path in cache.iterdir()}
    assert {*names, "lock", "other"} - here == gone
    assert not {f"{name}.size" for name in gone} & here
    make(cache / f"linux-6.1-{'a' * 10}.cpio")
    assert (cache / f"linux-6.1-{'a' * 10}-512.ext4").exists()


class Made:
    """Stands for what fetches and builds; notes what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []

        def userland(_target: object, path: Path, root: Path) -> None:
            self.asked.append("userland")
            root.mkdir(parents=True)
            (root / "file").write_text("user" * 5000)
            image._pack(path, root)

        def kernel(_archive: object, _package: str, kernel: Path, modules: Path, work: Path) -> None:
            self.asked.append("kernel")
            make(kernel, "kernel" * 5000)
            (work / "modules").mkdir()
            image._pack(modules, work / "modules", extra=b"")

        monkeypatch.setattr(image, "require", lambda *_: None)
        monkeypatch.setattr(image, "_build_userland", userland)
        monkeypatch.setattr(image, "_build_kernel", kernel)
        monkeypatch.setattr(Archive, "newest", lambda *_: "linux-image-6.12")

    def prepare(self) -> image.Image:
        self.asked.clear()
        return image.prepare(S390X, "6.12")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


@pytest.mark.parametrize(
    ("which", "again"),
    [
        ("userland-*.cpio", "userland"),
        ("linux-*.kernel", "kernel"),
        ("linux-*.cpio", "kernel"),
        ("linux-*.name", "kernel"),
    ],
)
def test_an_image_that_is_damaged_is_made_anew(made: Made, cache: Path, which: str, again: str) -> None:
    whole = made.prepare()
    assert made.asked == ["userland", "kernel"] and whole.release == "linux-image-6.12"
    assert made.prepare() == whole and made.asked == []
    home = cache / "images/s390x"
    (path,) = home.glob(which)
    content = path.read_bytes()
    os.truncate(path, len(content) // 2)
    assert made.prepare() == whole and made.asked == [again]
    assert path.read_bytes() == content
    assert not (home / "work").exists() and not list(home.glob("*.partial"))


def test_a_disk_that_is_damaged_is_filled_anew(made: Made, cache: Path) -> None:
    goal = cache / "copy"
    disk.make(S390X, goal, "6.12")
    (filled,) = (cache / "images/s390x").glob("*.ext4")
    first = filled.stat()
    disk.make(S390X, goal, "6.12")
    assert filled.stat().st_ino == first.st_ino
    os.truncate(filled, 1 << 20)
    disk.make(S390X, goal, "6.12")
    assert goal.stat().st_size == first.st_size
    assert subprocess.run(["/sbin/e2fsck", "-fn", goal], stdout=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("deb")
    (top / "tree/DEBIAN").mkdir(parents=True)
    (top / "tree/DEBIAN/control").write_text(
        "Package: one\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    (top / "tree/file").write_bytes(os.urandom(100000))
    subprocess.run(["dpkg-deb", "-b", top / "tree", top / "one_1_all.deb"], check=True, stdout=subprocess.DEVNULL)
    return top / "one_1_all.deb"


def archive_with(deb: Path, monkeypatch: pytest.MonkeyPatch, fetched: Callable[[Path], object]) -> Archive:
    """An archive that has this package here, cut short."""
    archive = Archive("s390x", "bookworm")
    archive.debs.mkdir(parents=True)
    (archive.debs / deb.name).write_bytes(deb.read_bytes()[:50000])

    def apt(_self: Archive, _program: str, *_arguments: str, cwd: Path) -> str:
        fetched(cwd / deb.name)
        return ""

    monkeypatch.setattr(Archive, "_apt", apt)
    monkeypatch.setattr(Archive, "_update", lambda _: None)
    return archive


def test_a_package_that_is_damaged_is_fetched_anew(deb: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_with(deb, monkeypatch, lambda path: path.write_bytes(deb.read_bytes()))
    archive.unpack(("one",), cache / "root")
    assert (cache / "root/file").read_bytes() == (deb.parent / "tree/file").read_bytes()


def test_a_package_that_cannot_be_fetched_anew(deb: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(_: Path) -> None:
        raise VmError("there is no network")

    archive = archive_with(deb, monkeypatch, fetched)
    monkeypatch.setattr(Archive, "_update_anew", lambda _: None)
    with pytest.raises(
        VmError, match=r"one_1_all\.deb was damaged and is removed, but cannot be .*: there is no network"
    ):
        archive.unpack(("one",), cache / "root")
    assert not (archive.debs / deb.name).exists()


@pytest.mark.parametrize(("cut", "error"), [(50000, debian.Damaged), (0, subprocess.CalledProcessError)])
def test_whose_fault_it_is_that_a_package_is_not_unpacked(
    deb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, error: type[Exception]
) -> None:
    """The package's; or tar's, which ends at once here, as on a disk that is full: nobody reads what dpkg-deb says."""
    os.truncate(deb, cut or deb.stat().st_size)
    if not cut:
        (tmp_path / "tar").write_text("#!/bin/sh\necho no room >&2; exit 2\n")
        (tmp_path / "tar").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(error, match=r"one_1_all\.deb is damaged; remove it" if cut else "tar"):
        debian.unpack(deb, tmp_path / "root")


def test_results_that_were_cut_short_are_none() -> None:
    key = Key("s390x", "6.12", "injection")
    session.remember(key, "one", {"outcome": "passed"})
    key.file.write_text(key.file.read_text()[:-5])
    assert session._known(key) == {}
    session.remember(key, "two", {"outcome": "passed"})
    assert list(json.loads(key.file.read_text())) == ["two"]
