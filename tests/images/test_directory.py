# SPDX-License-Identifier: Apache-2.0
"""Image directories and the container: written as promised, read with suspicion."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagekit import messages

from torpor.errors import ImageError
from torpor.images import container
from torpor.images.container import Pieces, encode_entries, parse_image, start_of
from torpor.images.directory import ImageReader, ImageWriter, write_small, write_stats
from torpor.images.kinds import (
    BPFMAP_DATA,
    CORE,
    CPUINFO,
    FDINFO,
    FILES,
    GHOST_FILE,
    INVENTORY,
    IPCNS_MSG,
    IPCNS_SEM,
    KINDS,
    PAGES,
    PIPES_DATA,
    PSTREE,
    RAW,
    SK_QUEUES,
    STATS,
    TCP_STREAM,
    ImageKind,
    kind_of_file,
)
from torpor.images.payloads import encode_ipc_messages, ghost_chunk, ghost_pieces, ipc_messages
from torpor.images.schema.bpfmap_data import BpfmapDataEntry
from torpor.images.schema.cpuinfo import CpuinfoEntry
from torpor.images.schema.fdinfo import FdinfoEntry
from torpor.images.schema.ghost_file import GhostFileEntry
from torpor.images.schema.inventory import InventoryEntry
from torpor.images.schema.ipc_desc import IpcDescEntry
from torpor.images.schema.ipc_msg import IpcMsg, IpcMsgEntry
from torpor.images.schema.ipc_sem import IpcSemEntry
from torpor.images.schema.pipe_data import PipeDataEntry
from torpor.images.schema.pstree import PstreeEntry
from torpor.images.schema.sk_packet import SkPacketEntry
from torpor.images.schema.stats import RestoreStatsEntry, StatsEntry
from torpor.images.schema.tcp_stream import TcpStreamEntry

TREE = [PstreeEntry(pid=10, ppid=0, pgid=10, sid=10, threads=[10, 11])]
INVENTORY_ENTRY = InventoryEntry(img_version=2, fdinfo_per_id=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_written_and_read_again(folder: int, tmp_path: Path) -> None:
    writer = ImageWriter(folder)
    writer.write(PSTREE, TREE)
    writer.write("FDINFO", [FdinfoEntry(id=1, flags=0, type=1, fd=fd) for fd in range(5000)], 2)
    writer.write(PIPES_DATA, [(PipeDataEntry(pipe_id=5, bytes=3), b"abc"), (PipeDataEntry(pipe_id=6, bytes=0), b"")])
    fd = writer.open_raw(PAGES, 1)
    os.write(fd, bytes(4096))
    os.close(fd)
    assert not (tmp_path / "inventory.img").exists()
    writer.finish(INVENTORY_ENTRY)
    reader = ImageReader(folder)
    assert reader.inventory() == INVENTORY_ENTRY
    assert reader.entries(PSTREE) == TREE
    assert len(reader.entries(FDINFO, 2)) == 5000
    assert reader.entries_with_payload(PIPES_DATA)[0] == (PipeDataEntry(pipe_id=5, bytes=3), b"abc")
    assert reader.exists(PAGES, 1) and not reader.exists(PAGES, 2)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fdinfo-2.img", "inventory.img", "pages-1.img", "pipes-data.img", "pstree.img",
    ]  # fmt: skip


def test_magic_words(folder: int, tmp_path: Path) -> None:
    writer = ImageWriter(folder)
    writer.write(PSTREE, TREE)
    writer.finish(INVENTORY_ENTRY)
    stats = RestoreStatsEntry(pages_compared=0, pages_skipped_cow=0, forking_time=1, restore_time=2)
    write_stats(str(tmp_path), StatsEntry(restore=stats))
    assert (tmp_path / "pstree.img").read_bytes()[:8].hex() == "19435654" + "30302750"
    assert (tmp_path / "inventory.img").read_bytes()[:4].hex() == "16313158"
    assert (tmp_path / "stats-restore").read_bytes()[:8].hex() == "40591055" + "06330957"
    assert ImageReader(folder).one(STATS, "restore").dump is None


def test_version_one_has_no_common_word(folder: int, tmp_path: Path) -> None:
    (tmp_path / "pstree.img").write_bytes(b"".join([start_of(PSTREE)[4:], *encode_entries(TREE)]))
    assert ImageReader(folder).entries(PSTREE) == TREE


def test_an_old_checkpoint_ends_when_the_new_one_begins(folder: int, tmp_path: Path) -> None:
    first = ImageWriter(folder)
    first.write(PSTREE, TREE)
    first.write(FDINFO, [FdinfoEntry(id=1, flags=0, type=1, fd=0)], 1)
    first.finish(INVENTORY_ENTRY)
    second = ImageWriter(folder)
    assert (tmp_path / "inventory.img").exists()
    second.write(FDINFO, [], 1)
    assert not (tmp_path / "inventory.img").exists() and not (tmp_path / "fdinfo-1.img").exists()
    second.write(PSTREE, TREE)
    second.discard()
    assert not list(tmp_path.iterdir())


def test_the_old_inventory_is_off_the_disk_before_anything_is_written(
    folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ImageWriter(folder)
    first.write(PSTREE, TREE)
    first.finish(INVENTORY_ENTRY)
    calls: list[tuple[str, object]] = []

    def noted(name: str) -> Any:
        real = getattr(os, name)

        def note(what: Any, *rest: Any, **where: Any) -> Any:
            calls.append((name, what))
            return real(what, *rest, **where)

        return note

    for name in ("unlink", "fsync", "open"):
        monkeypatch.setattr(os, name, noted(name))
    second = ImageWriter(folder)
    second.write(PSTREE, TREE)
    assert calls[:3] == [("unlink", "inventory.img"), ("fsync", folder), ("open", "pstree.img")]
    calls.clear()
    second.write(FDINFO, [FdinfoEntry(id=1, flags=0, type=1, fd=0)], 1)
    assert [name for name, _ in calls] == ["open"]  # it waits for the disk once


@pytest.mark.parametrize(
    ("sync", "waits"),
    [(True, ["the file", "rename", "the directory"]), (False, ["rename"])],
    ids=["synced", "nobody_waits"],
)
def test_a_small_image_is_on_the_disk_then_its_name(
    folder: int, monkeypatch: pytest.MonkeyPatch, sync: bool, waits: list[str]
) -> None:
    """That of `torpor cpuinfo dump`; with sync=False, as stats are written, nothing of it."""
    order: list[str] = []
    rename = os.rename

    def synced(fd: int) -> None:
        order.append("the directory" if fd == folder else "the file")

    def renamed(*names: Any, **where: Any) -> None:
        order.append("rename")
        rename(*names, **where)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    write_small(folder, CPUINFO, CpuinfoEntry(), sync=sync)
    assert order == waits


def test_nothing_is_written_through_a_link(folder: int, tmp_path: Path) -> None:
    victim = tmp_path.parent / f"{tmp_path.name}-victim"
    victim.write_text("mine")
    (tmp_path / "pstree.img").symlink_to(victim)
    (tmp_path / "inventory.img").symlink_to(victim)
    writer = ImageWriter(folder)
    writer.write(PSTREE, TREE)
    writer.finish(INVENTORY_ENTRY)
    assert victim.read_text() == "mine"
    assert ImageReader(folder).entries(PSTREE) == TREE


def test_links_and_fifos_are_not_read(folder: int, tmp_path: Path) -> None:
    (tmp_path / "pstree.img").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "files.img")
    (tmp_path / "core-1.img").mkdir()
    reader = ImageReader(folder)
    cases: list[tuple[ImageKind[Any], int | None]] = [(PSTREE, None), (FILES, None), (CORE, 1)]
    for kind, id in cases:
        assert not reader.exists(kind, id)
        with pytest.raises(ImageError):
            reader.entries(kind, id)
        with pytest.raises(ImageError):
            reader.open_raw(kind, id)


def test_missing(folder: int) -> None:
    reader = ImageReader(folder)
    assert reader.entries(FILES) == [] and reader.find(CORE, 1) is None
    for ask in (lambda: reader.one(CORE, 1), reader.inventory, lambda: reader.open_raw(PAGES, 1)):
        with pytest.raises(ImageError, match="missing"):
            ask()
    with pytest.raises(ImageError):
        ImageReader.open("/nonexistent")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "magic"),
        (b"\x19\x43\x56\x54", "magic"),
        (start_of(FILES), "magic"),
        (start_of(PSTREE) + b"\x01\x00", "length"),
        (start_of(PSTREE) + b"\xff\xff\xff\xff", "beyond"),
        (start_of(PSTREE) + b"\x05\x00\x00\x00\x08\x01", "beyond"),
        (start_of(PSTREE) + b"\x02\x00\x00\x00\x08\x01", "missing"),
    ],
)
def test_mangled(folder: int, tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "pstree.img").write_bytes(data)
    with pytest.raises(ImageError, match=why) as caught:
        ImageReader(folder).entries(PSTREE)
    assert "pstree.img" in str(caught.value)


def test_names() -> None:
    assert CORE.file_name(12) == "core-12.img" and TCP_STREAM.file_name(255) == "tcp-stream-ff.img"
    assert kind_of_file("pagemap-shmem-5.img") == (KINDS["SHMEM_PAGEMAP"], 5)
    assert kind_of_file("ghost-file-1f.img") == (GHOST_FILE, 31)
    assert kind_of_file("stats-dump") == (STATS, "dump")
    for name in (
        "core-.img",
        "core-x.img",
        "core-1.img.tmp",
        "../core-1.img",
        "dump.log",
        "core-²3.img",
        ".inventory.img",
    ):
        assert kind_of_file(name) is None
    for kind in KINDS.values():
        id = None if "{" not in kind.pattern else "dump" if kind is STATS else 7
        found = kind_of_file(kind.file_name(id))
        assert found == (kind, id)
        if kind.shape != RAW:
            assert kind.message.fields()
    for id in ("../x", -1, None, "1"):
        with pytest.raises(ValueError):
            CORE.file_name(id)


# ---- raw bytes -------------------------------------------------------------------------------------------------------

DESC = IpcDescEntry(key=1, uid=0, gid=0, cuid=0, cgid=0, mode=0, id=0)
QUEUE = [(IpcMsg(mtype=1, msize=5), b"hello"), (IpcMsg(mtype=2, msize=8), b"12345678"), (IpcMsg(mtype=3, msize=0), b"")]
STREAM = TcpStreamEntry(inq_len=2, inq_seq=0, outq_len=3, outq_seq=0, opt_mask=0, snd_wscale=0, mss_clamp=0)


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        (PIPES_DATA, [(PipeDataEntry(pipe_id=1, bytes=4), b"data")] * 2),
        (SK_QUEUES, [(SkPacketEntry(id_for=1, length=4), b"data"), (SkPacketEntry(id_for=1, length=0), b"")]),
        (TCP_STREAM, [(STREAM, b"inout")]),
        (BPFMAP_DATA, [(BpfmapDataEntry(map_id=1, keys_bytes=4, values_bytes=8, count=1), b"kkkkvvvvvvvv")]),
        (IPCNS_SEM, [(IpcSemEntry(desc=DESC, nsems=3), b"\1\0\2\0\3\0\0\0")] * 2),
        (IPCNS_MSG, [(IpcMsgEntry(desc=DESC, qbytes=13, qnum=3), encode_ipc_messages(QUEUE))] * 2),
    ],
)
@pytest.mark.parametrize("piece", [1, 16, 1 << 20])
def test_payloads(
    kind: ImageKind[PstreeEntry],
    entries: list[tuple[PstreeEntry, bytes]],
    piece: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(container, "_PIECE", piece)
    data = b"".join([start_of(kind), *encode_entries(entries)])
    assert list(parse_image(kind, data, "it")) == entries
    with pytest.raises(ImageError):
        list(parse_image(kind, data[:-1], "it"))
    path = tmp_path / "image"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert list(parse_image(kind, Pieces(file.fileno(), len(data)), "it")) == entries
        with pytest.raises(ImageError):
            list(parse_image(kind, Pieces(file.fileno(), len(data) - 1), "it"))
        os.truncate(path, len(data) - 1)
        with pytest.raises(OSError, match="shorter"):
            list(parse_image(kind, Pieces(file.fileno(), len(data)), "it"))


def test_a_read_may_be_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "image", os.pread
    path.write_bytes(bytes(range(256)))
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 7), at))
    with path.open("rb") as file:
        data = Pieces(file.fileno(), 256)
        for part in (slice(None), slice(3, 40), slice(250, 300), slice(300, 304)):
            assert data[part] == bytes(range(256))[part]


def test_ipc_messages() -> None:
    entry = IpcMsgEntry(desc=DESC, qbytes=13, qnum=3)
    assert [(message, body) for message, body, _ in ipc_messages(entry, encode_ipc_messages(QUEUE))] == QUEUE
    with pytest.raises(ImageError):
        ipc_messages(IpcMsgEntry(desc=DESC, qbytes=13, qnum=2**32 - 1), encode_ipc_messages(QUEUE))


def test_ghost_files(folder: int) -> None:
    writer = ImageWriter(folder)
    plain = GhostFileEntry(uid=0, gid=0, mode=0o100644)
    fd = writer.open_raw(GHOST_FILE, 1, plain)
    os.write(fd, b"content")
    os.close(fd)
    chunked = GhostFileEntry(uid=0, gid=0, mode=0o100644, chunks=True, size=30000)
    fd = writer.open_raw(GHOST_FILE, 2, chunked)
    os.write(fd, ghost_chunk(0, 4) + b"head" + ghost_chunk(20000, 4) + b"tail")
    os.close(fd)
    reader = ImageReader(folder)
    for id, entry, expected in ((1, plain, [(0, b"content")]), (2, chunked, [(0, b"head"), (20000, b"tail")])):
        found, fd, at = reader.open_payload(GHOST_FILE, id)
        pieces = [(offset, os.pread(fd, length, where)) for where, offset, length in ghost_pieces(fd, found, at)]
        os.close(fd)
        assert found == entry and pieces == expected
    fd = writer.open_raw(GHOST_FILE, 3, chunked)
    os.write(fd, ghost_chunk(29999, 2) + b"xx")
    os.close(fd)
    found, fd, at = reader.open_payload(GHOST_FILE, 3)
    with pytest.raises(ImageError, match="beyond"):
        list(ghost_pieces(fd, found, at))
    os.close(fd)


# ---- anything at all -------------------------------------------------------------------------------------------------

WITH_ENTRIES = [kind for kind in KINDS.values() if kind.shape != RAW]


@given(st.sampled_from(WITH_ENTRIES), st.binary(max_size=300), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_an_image_or_an_image_error(kind: ImageKind[PstreeEntry], data: bytes, started: bool) -> None:
    try:
        list(parse_image(kind, start_of(kind) + data if started else data, "it"))
    except ImageError as error:
        assert str(error)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_mutated_images(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(WITH_ENTRIES))
    entries = [(data.draw(messages(kind.message)), b"") for _ in range(data.draw(st.integers(0, 2)))]
    image = bytearray(b"".join([start_of(kind), *encode_entries(entries)]))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(image)))
        cut = data.draw(st.integers(0, 8))
        image[at : at + cut] = data.draw(st.binary(max_size=8))
    try:
        list(parse_image(kind, bytes(image), "it"))
    except ImageError:
        pass


def test_inventory_of_another_version(folder: int) -> None:
    writer = ImageWriter(folder)
    writer.write(INVENTORY, [InventoryEntry(img_version=3)])
    with pytest.raises(ImageError, match="version"):
        ImageReader(folder).inventory()
