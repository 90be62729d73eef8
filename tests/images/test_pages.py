# SPDX-License-Identifier: Apache-2.0
"""Pagemaps and page images: written as promised, read with suspicion."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.errors import ImageError
from torpor.images.directory import ImageReader, ImageWriter
from torpor.images.kinds import (
    PAGEMAP,
    PAGES,
)
from torpor.images.pages import PE_LAZY, PE_PARENT, PE_PRESENT, PagemapReader, PagemapWriter, PageStore, Run
from torpor.images.schema.inventory import InventoryEntry
from torpor.images.schema.pagemap import PagemapEntry, PagemapHead

INVENTORY_ENTRY = InventoryEntry(img_version=2, fdinfo_per_id=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def write_pages(writer: ImageWriter, id: int, runs: list[tuple[int, int, int]], pages_id: int = 1) -> PagemapWriter:
    pagemap = PagemapWriter(writer, id, pages_id)
    fd = pagemap.open_pages()
    for vaddr, nr_pages, flags in runs:
        pagemap.add(vaddr, nr_pages, flags)
        if flags & PE_PRESENT:
            os.write(fd, bytes(4096 * nr_pages))
    os.close(fd)
    pagemap.finish()
    return pagemap


@pytest.mark.parametrize(
    ("spans", "blank"),
    [
        ([], ""),
        ([(0, 0x1000), (0x3000, 0x8000), (0xD000, 0xF000)], ""),
        ([(0x1000, 0x2000)], "a"),
        ([(0x2000, 0x9000)], "bc"),
        ([(0x1000, 0x2000), (0x2000, 0x3000), (0x9000, 0xA000), (0xB000, 0xC000)], "abde"),
        ([(0, 0x10000)], "abcde"),
    ],
)
def test_pages_are_blanked(folder: int, tmp_path: Path, spans: list[tuple[int, int]], blank: str) -> None:
    """Where they lie in the image, and no others: a to e stand at 0x1000, 0x2000, 0x8000, 0x9000 and 0xb000."""
    pagemap = PagemapWriter(ImageWriter(folder), 7, 1)
    fd = pagemap.open_pages()
    for vaddr, count, flags in (
        (0x1000, 2, PE_PRESENT),
        (0x4000, 1, PE_PARENT),
        (0x8000, 2, PE_PRESENT),
        (0xB000, 1, PE_PRESENT),
    ):
        pagemap.add(vaddr, count, flags)
    os.write(fd, b"".join(letter.encode() * 4096 for letter in "abcde"))
    os.close(fd)
    pagemap.blank(spans)
    pages = (tmp_path / "pages-1.img").read_bytes()
    shown = "".join(chr(pages[at]) if pages[at] else "-" for at in range(0, len(pages), 4096))
    assert shown == "".join("-" if letter in blank else letter for letter in "abcde")
    assert len(pages) == 5 * 4096 and pages.count(0) == 4096 * len(blank)


def test_runs_are_joined(folder: int) -> None:
    writer = ImageWriter(folder)
    written = write_pages(
        writer, 7,
        [(0x1000, 1, PE_PRESENT), (0x2000, 2, PE_PRESENT), (0x4000, 1, PE_PARENT), (0x6000, 1, PE_PRESENT | PE_LAZY)],
    )  # fmt: skip
    expected = [Run(0x1000, 3, 4, 0), Run(0x4000, 1, 1), Run(0x6000, 1, 6, 0x3000)]
    assert written.runs == expected
    pagemap = PagemapReader(ImageReader(folder), 7)
    assert pagemap.runs == expected and pagemap.bytes_stored == 4 * 4096
    for wrong in ((0x6000, 1), (0x7001, 1), (0x8000, 0)):
        with pytest.raises(ValueError):
            written.add(*wrong)


def test_old_pagemaps(folder: int) -> None:
    writer = ImageWriter(folder)
    os.close(writer.open_raw(PAGES, 3))
    entries = [PagemapEntry(vaddr=0x1000, compat_nr_pages=2, in_parent=True)]
    writer.write(PAGEMAP, [PagemapHead(pages_id=3), *entries], 7)
    assert PagemapReader(ImageReader(folder), 7).runs == [Run(0x1000, 2, PE_PARENT)]
    writer.write(PAGEMAP, [PagemapHead(pages_id=3), PagemapEntry(vaddr=0x1000, compat_nr_pages=2)], 7)
    with pytest.raises(ImageError, match="too short"):
        PagemapReader(ImageReader(folder), 7)


@pytest.mark.parametrize(
    "runs",
    [
        [(0x1001, 1, 4)],
        [(0x1000, 0, 4)],
        [(0x1000, 2**63, 4)],
        [(2**64 - 4096, 2, 4)],
        [(0x2000, 1, 1), (0x1000, 1, 1)],
        [(0x1000, 2, 1), (0x2000, 1, 1)],
        [(0x1000, 1, 0)],
        [(0x1000, 2**40, 4)],
    ],
)
def test_impossible_pagemaps(folder: int, runs: list[tuple[int, int, int]]) -> None:
    writer = ImageWriter(folder)
    os.close(writer.open_raw(PAGES, 1))
    entries = [PagemapEntry(vaddr=at, compat_nr_pages=0, nr_pages=many, flags=flags) for at, many, flags in runs]
    writer.write(PAGEMAP, [PagemapHead(pages_id=1), *entries], 7)
    with pytest.raises(ImageError):
        PagemapReader(ImageReader(folder), 7)


def test_parents(tmp_path: Path) -> None:
    runs = [
        [(0x1000, 8, PE_PRESENT), (0x10000, 1, PE_PRESENT)],
        [(0x1000, 2, PE_PARENT), (0x3000, 2, PE_PRESENT), (0x5000, 4, PE_PARENT)],
        [(0x2000, 4, PE_PARENT), (0x6000, 1, PE_PRESENT), (0x20000, 1, PE_LAZY)],
    ]
    for level, these in enumerate(runs):
        (tmp_path / str(level)).mkdir()
        fd = os.open(tmp_path / str(level), os.O_RDONLY)
        writer = ImageWriter(fd)
        writer.set_parent(f"../{level - 1}" if level else None)
        write_pages(writer, 7, these)
        writer.finish(INVENTORY_ENTRY)
        os.close(fd)
    with ImageReader.open(str(tmp_path / "2")) as images, PageStore(images, 7) as store:
        where = [(run.vaddr, run.nr_pages, run.offset, store.levels.index(level) if level else None)
                 for run, level in store.pieces]  # fmt: skip
    assert where == [
        (0x2000, 1, 0x1000, 2), (0x3000, 2, 0, 1), (0x5000, 1, 0x4000, 2), (0x6000, 1, 0, 0), (0x20000, 1, -1, None),
    ]  # fmt: skip


def test_parents_that_lack_pages_or_go_round(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    writer = ImageWriter(fd)
    write_pages(writer, 7, [(0x1000, 2, PE_PARENT)])
    with pytest.raises(ImageError, match="parent"):
        PageStore(ImageReader(fd), 7)
    writer.set_parent(".")
    with pytest.raises(ImageError, match="circle"):
        PageStore(ImageReader(fd), 7)
    (tmp_path / "b").mkdir()
    other = os.open(tmp_path / "b", os.O_RDONLY)
    write_pages(ImageWriter(other), 7, [(0x1000, 1, PE_PRESENT)])
    writer.set_parent("../b")
    with pytest.raises(ImageError, match="lacks the page at 0x2000"):
        PageStore(ImageReader(fd), 7)
    writer.set_parent("/dev/null")
    with pytest.raises(ImageError):
        PageStore(ImageReader(fd), 7)
    os.close(fd)
    os.close(other)


@given(
    st.lists(st.tuples(st.integers(0, 2**52 + 3), st.integers(0, 2**53), st.integers(0, 7), st.booleans()), max_size=8)
)
@settings(max_examples=300, deadline=None)
def test_any_pagemap(tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int, int, bool]]) -> None:
    base = tmp_path_factory.getbasetemp() / "pagemaps"
    base.mkdir(exist_ok=True)
    entries = [
        PagemapEntry(vaddr=min(page * 4096, 2**64 - 1), compat_nr_pages=0, nr_pages=many, flags=None if old else flags)
        for page, many, flags, old in runs
    ]
    fd = os.open(base, os.O_RDONLY)
    try:
        writer = ImageWriter(fd)
        writer.write(PAGEMAP, [PagemapHead(pages_id=1), *entries], 7)
        pages = writer.open_raw(PAGES, 1)
        os.truncate(pages, 2**30)
        os.close(pages)
        with PageStore(ImageReader(fd), 7) as store:
            assert sum(run.nr_pages for run, _ in store.pieces) == sum(entry.nr_pages or 0 for entry in entries)
    except ImageError as error:
        assert str(error)
    finally:
        os.close(fd)
