# SPDX-License-Identifier: Apache-2.0
"""Files that lost the name under which they were opened, and have others (--link-remap)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filekit import Saved, look, opened

from torpor.errors import ImageError, Refusal
from torpor.images.schema.fdinfo import FileEntry


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "images", {})


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A file that lost the name under which it was opened, and its directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    fd = opened(tmp_path / "here/name")
    os.link(tmp_path / "here/name", tmp_path / "there/other")
    (tmp_path / "here/name").unlink()
    yield fd, tmp_path / "here"
    assert os.listdir(tmp_path / "there") == ["other"]


def test_link_remap(tmp_path: Path, other: tuple[int, Path]) -> None:
    fd, here = other
    twin = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND)
    saved = Saved(tmp_path / "images", {"link_remap": True}).save(fd, twin).write()
    assert sorted(os.listdir(here)) == ["link_remap.2", "link_remap.4"]
    restore = saved.restore()
    now, now2 = restore.make()
    assert sorted(os.listdir(here)) == ["link_remap.2", "link_remap.4"], "they are needed until the restore is done"
    restore.end()
    assert os.listdir(here) == []
    assert (look(now), look(now2)) == (look(fd), look(twin))
    assert os.path.sameopenfile(now, fd) and os.path.sameopenfile(now2, fd)


def test_numbers_of_links_that_are_taken(tmp_path: Path, other: tuple[int, Path]) -> None:
    fd, here = other
    (here / "link_remap.2").touch()
    saved = Saved(tmp_path / "images", {"link_remap": True}).save(fd).write()
    assert sorted(os.listdir(here)) == ["link_remap.2", "link_remap.3"]
    restore = saved.restore()
    restore.make()
    restore.end()
    assert os.listdir(here) == ["link_remap.2"]


def test_no_link_stays_after_a_failed_dump(tmp_path: Path, other: tuple[int, Path]) -> None:
    fd, here = other
    Saved(tmp_path / "images", {"link_remap": True}).save(fd).fail()
    assert os.listdir(here) == []


@pytest.mark.parametrize("option", ["leave_running", "leave_stopped"])
def test_a_tree_that_goes_on_keeps_no_link(tmp_path: Path, other: tuple[int, Path], option: str) -> None:
    fd, here = other
    saved = Saved(tmp_path / "images", {"link_remap": True, option: True}).save(fd)
    if not any(own.handle for own in saved.dump.state.get("file extras", {}).values()):
        pytest.skip("no file handles on this file system")
    saved.write()
    assert os.listdir(here) == []
    restore = saved.restore()
    (now,) = restore.make()
    restore.end()
    assert look(now) == look(fd) and os.path.sameopenfile(now, fd)


def test_the_link_is_gone_and_the_file_too(tmp_path: Path, other: tuple[int, Path]) -> None:
    fd, here = other
    saved = Saved(tmp_path / "images", {"link_remap": True}).save(fd).write()
    (here / "link_remap.2").unlink()
    os.rename(tmp_path / "there/other", tmp_path / "there/file")
    (tmp_path / "there/file").unlink()
    os.close(fd)
    (tmp_path / "there/other").touch()
    with pytest.raises(Refusal, match=r"link_remap\.2"):
        saved.restore()


def test_a_stranger_cannot_have_files_removed(tmp_path: Path, other: tuple[int, Path]) -> None:
    fd, here = other
    saved = Saved(tmp_path / "images", {"link_remap": True}).save(fd).write()
    precious = tmp_path / "precious"
    precious.touch()

    def change(entry: FileEntry) -> None:
        assert entry.reg is not None
        if "link_remap" in entry.reg.name:
            entry.reg.name = str(precious)

    with pytest.raises(ImageError):
        saved.restore(change)
    assert precious.exists()
    (here / "link_remap.2").unlink()
