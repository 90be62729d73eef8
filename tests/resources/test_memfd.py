# SPDX-License-Identifier: Apache-2.0
"""memfds: content, holes, seals, several descriptions of one inode."""

import fcntl
import os
from pathlib import Path

import pytest
from filekit import Saved, look

from torpor.errors import ImageError, Refusal
from torpor.images.schema.fdinfo import FileEntry
from torpor.resources.description import extra

MFD_HUGETLB = 4
SHRINK, GROW, WRITE, SEAL = 2, 4, 8, 1
F_ADD_SEALS, F_GET_SEALS = 1033, 1034


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "images", {})


def test_content_and_descriptions(saved: Saved) -> None:
    first = os.memfd_create("a (deleted)", os.MFD_CLOEXEC)
    os.pwrite(first, b"begin", 0)
    os.pwrite(first, b"end", 1 << 20)
    os.fchmod(first, 0o640)
    os.fchown(first, 12, 34)
    second = os.open(f"/proc/self/fd/{first}", os.O_RDONLY)
    os.lseek(first, 3, os.SEEK_SET)
    os.lseek(second, 9, os.SEEK_SET)
    was = look(first), look(second)
    new, new2 = saved.save(first, second).remade()
    assert (look(new), look(new2)) == was
    assert os.path.sameopenfile(new, new2)
    assert os.pread(new2, 5, 0) == b"begin" and os.pread(new, 9, 1 << 20) == b"end"
    assert os.fstat(new).st_blocks <= os.fstat(first).st_blocks
    assert fcntl.fcntl(new, F_GET_SEALS) == SEAL


@pytest.mark.parametrize("seals", [0, SHRINK, GROW, WRITE, SHRINK | GROW | WRITE | SEAL])
def test_seals(saved: Saved, seals: int) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, b"content")
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
    (new,) = saved.save(fd).remade()
    assert fcntl.fcntl(new, F_GET_SEALS) == seals
    assert os.pread(new, 10, 0) == b"content"


def test_empty_and_nameless(saved: Saved) -> None:
    fd = os.memfd_create("")
    (new,) = saved.save(fd).remade()
    assert look(new) == look(fd)


def test_hugetlb_is_refused(saved: Saved) -> None:
    try:
        fd = os.memfd_create("huge", MFD_HUGETLB)
    except OSError:
        pytest.skip("no hugetlb here")
    with pytest.raises(Refusal, match="hugetlb"):
        saved.save(fd)


def test_no_descriptor_of_a_name(saved: Saved) -> None:
    fd = os.memfd_create("x")
    with pytest.raises(Refusal):
        saved.save(os.open(f"/proc/self/fd/{fd}", os.O_PATH))


@pytest.mark.parametrize(("field", "value"), [("flags", 3), ("flags", os.O_PATH), ("pos", 1 << 63)])
def test_mangled_entries(saved: Saved, field: str, value: int) -> None:
    saved.save(os.memfd_create("x")).write()

    def change(entry: FileEntry) -> None:
        setattr(entry.memfd, field, value)

    with pytest.raises(ImageError):
        saved.restore(change)


def test_an_inode_that_is_not_there(saved: Saved) -> None:
    saved.save(os.memfd_create("x")).write()

    def change(entry: FileEntry) -> None:
        assert entry.memfd is not None
        entry.memfd.inode_id += 1

    with pytest.raises(ImageError):
        saved.restore(change)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attribute_names", [b"security.ima"]),
        ("attribute_names", [b"user." + b"x" * 300]),
        ("attribute_names", [b"user.a\0b"]),
        ("attribute_names", [b"user.a", b"user.b"]),
        ("attribute_values", [bytes(1 << 17)]),
        ("inode_flags", 0x10),
        ("write_hint", 6),
    ],
)
def test_impossible_attributes(saved: Saved, field: str, value: object) -> None:
    """Only what a dump may have entered, and not what the kernel alone gives to files."""
    fd = os.memfd_create("memory")
    saved.save(fd)
    own = extra(saved.dump, saved.ids[0])
    own.attribute_names, own.attribute_values = [b"user.a"], [b"value"]
    setattr(own, field, value)
    saved.write()
    with pytest.raises(ImageError, match="impossible attributes"):
        saved.restore()
