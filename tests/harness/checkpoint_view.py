# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as one flat dictionary: a path such as "core-12 ti_s390 gpregs gprs 3" → a value, for comparing two.

It is read with Torpor's own decoder.  What a tool numbers as it likes (open files, tables of them, shared segments,
kernel objects) is replaced by where it is used: an open file stands in full at every descriptor, area and directory
that refers to it, and who shares what is told by the first place that has the same.  Pages are bytes, those that
private areas have in common with their files a word.  A time that runs is one number of nanoseconds.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torpor.images import kinds
from torpor.images.asjson import message_to_json
from torpor.images.directory import ImageReader
from torpor.images.pages import PAGE_SIZE, PagemapReader, PageStore
from torpor.images.schema.constants import VmaStatus

View = dict[str, object]
Entry = dict[str, Any]
AS_IN_FILE = "as in the file"
_SPECIAL = {VmaStatus.VMA_AREA_VDSO: " vdso", VmaStatus.VMA_AREA_VVAR: " vvar"}
_RUNNING = (("vsec", "vusec", 1000), ("vsec", "vnsec", 1))  # of timers
_MAP_PRIVATE = 2
_FILE_NUMBERS = ("exe_file_id", "cwd_id", "root_id", "regf_id")
_NOT_COMPARED = (kinds.FILES, kinds.IDS, kinds.FDINFO, kinds.MEMFD_INODE)  # stand where they are used


class Checkpoint:
    """One directory of images while it is made flat.  Raises ImageError."""

    def __init__(self, images: ImageReader) -> None:
        self.images = images
        self.named = [known for name in sorted(images.names()) if (known := kinds.kind_of_file(name)) is not None]
        self.files = {entry.id: message_to_json(entry) for entry in images.entries(kinds.FILES)}
        self.memfds: dict[int, Entry] = {}
        if images.exists(kinds.MEMFD_INODE):
            self.memfds = {entry.inode_id: message_to_json(entry) for entry in images.entries(kinds.MEMFD_INODE)}
        self.first: dict[tuple[str, int], str] = {}  # what a number stands for → the first place that has it
        self.view: View = {}

    def ids_of(self, kind: kinds.ImageKind[Any]) -> list[int]:
        return [int(id or 0) for known, id in self.named if known is kind]

    def add(self, path: str, value: Any) -> None:
        self.view.update(_flat(path, value))

    def read(self) -> View:
        tables: dict[int, int] = {}
        for pid in sorted(self.ids_of(kinds.IDS)):
            ids = message_to_json(self.images.one(kinds.IDS, pid))
            self.add(f"ids-{pid}", {name: self.same(name, number, f"ids-{pid}") for name, number in ids.items()})
            tables.setdefault(ids["files_id"], pid)
        for pid in sorted(self.ids_of(kinds.MM)):
            self._memory(pid)
        for table, pid in sorted(tables.items(), key=lambda item: item[1]):
            if table in self.ids_of(kinds.FDINFO):
                self._descriptors(table, pid)
        for kind, id in self.named:
            if kind.shape == kinds.RAW or kind.has_head or kind.is_service or kind in (*_NOT_COMPARED, kinds.MM):
                continue
            for number, (message, payload) in enumerate(self.images.entries_with_payload(kind, id)):
                entry = message_to_json(message)
                where = kind.file_name(id).removesuffix(".img") + self._key(kind, entry, number)
                self.add(where, {**self.placed(entry, where), **({"payload": payload} if payload else {})})
        return self.view

    def same(self, what: str, number: int, place: str) -> str:
        return self.first.setdefault((what, number), place)

    def _key(self, kind: kinds.ImageKind[Any], entry: Entry, number: int) -> str:
        """What an entry is called instead of by its place in the image."""
        if kind is kinds.PSTREE:
            return f" {entry['pid']}"
        if kind in (kinds.PIPES_DATA, kinds.FIFO_DATA):
            return f" {entry['pipe_id']}"
        return "" if kind.shape == kinds.ONE else f" {number}"

    def placed(self, entry: Entry, where: str) -> Entry:
        """The entry with what its numbers stand for."""
        found: Entry = {}
        for name, value in entry.items():
            if (name in _FILE_NUMBERS or (name == "id" and "fd" in entry)) and value in self.files:
                found[name] = self.file(value, f"{where} {name}")
            elif name == "id_for":
                found[name] = self.first.get(("file", value), value)
            elif name in ("inode_id", "shmid") and value in self.memfds:
                inode = {key: part for key, part in self.memfds[value].items() if key not in ("inode_id", "shmid")}
                found[name] = {"place": self.same("memfd", value, where), **inode}
                self._segment(self.memfds[value]["shmid"], where)
            elif isinstance(value, dict):
                found[name] = self.placed(value, where)
            else:
                found[name] = value
        return found

    def file(self, id: int, where: str) -> Entry:
        """An open file without its number, which stands in it twice."""
        entry = {name: value for name, value in self.files[id].items() if name != "id"}
        return self.placed(
            {name: {key: part for key, part in value.items() if key != "id"} if isinstance(value, dict) else value
             for name, value in entry.items()}, where,
        )  # fmt: skip

    def _descriptors(self, table: int, pid: int) -> None:
        for entry in sorted(self.images.entries(kinds.FDINFO, table), key=lambda entry: entry.fd):
            where = f"fdinfo of {pid} {entry.fd}"
            place = self.same("file", entry.id, where)
            self.add(where, {**self.placed(message_to_json(entry), where), "description": place})

    # -- memory -------------------------------------------------------------------------------------------------------

    def _memory(self, pid: int) -> None:
        entry = message_to_json(self.images.one(kinds.MM, pid))
        areas = entry.pop("vmas")
        self.add(f"mm-{pid}", self.placed(entry, f"mm-{pid}"))
        for area in areas:
            special = next((name for bit, name in _SPECIAL.items() if area["status"] & bit), "")
            where = f"mm-{pid} {area['start']:#x}{special}"
            shmid = area["shmid"]
            if shmid in self.files:
                area["shmid"] = self.file(shmid, where)
            elif shmid:
                area["shmid"] = self.same("segment", shmid, where)
                self._segment(shmid, where)
            if area["flags"] & _MAP_PRIVATE and "fdflags" in area:
                area["private fdflags"] = area.pop("fdflags")
            self.add(where, area)
        with PageStore(self.images, pid) as store:
            for address, content in _pages(store):
                shown: object = content
                area = next((one for one in areas if one["start"] <= address < one["end"]), None)
                if area and isinstance(area["shmid"], dict) and content == _in_file(area, address):
                    shown = AS_IN_FILE
                self.view[f"pagemap-{pid} {address:#x}"] = shown

    def _segment(self, shmid: int, where: str) -> None:
        """A shared segment's pages, at the first place that has it."""
        if self.same("pages", shmid, where) == where and self.images.exists(kinds.SHMEM_PAGEMAP, shmid):
            with PageStore(self.images, shmid, kinds.SHMEM_PAGEMAP) as store:
                for address, content in _pages(store):
                    self.view[f"segment of {where}, page at {address:#x}"] = content


def _pages(store: PageStore) -> Iterator[tuple[int, bytes]]:
    opened: dict[PagemapReader, int] = {}
    try:
        for run, level in store.pieces:
            if level is not None and level not in opened:
                opened[level] = level.open_pages()
            for at in range(0, run.nr_pages * PAGE_SIZE, PAGE_SIZE):
                yield run.vaddr + at, os.pread(opened[level], PAGE_SIZE, run.offset + at) if level is not None else b""
    finally:
        for fd in opened.values():
            os.close(fd)


def _in_file(area: Entry, address: int) -> bytes:
    """What the area's file has at this page."""
    reg = area["shmid"].get("reg")
    if reg is None:
        return b""
    try:
        with open(reg["name"], "rb") as file:
            file.seek(area["pgoff"] + address - area["start"])
            return file.read(PAGE_SIZE).ljust(PAGE_SIZE, b"\0")
    except OSError:
        return b""


def _flat(path: str, value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        value = dict(value)
        for seconds, rest, factor in _RUNNING:
            if seconds in value and rest in value:
                yield f"{path} remaining", value.pop(seconds) * 10**9 + value.pop(rest) * factor
        for name, part in value.items():
            yield from _flat(f"{path} {name}", part)
    elif isinstance(value, list):
        yield f"{path} number", len(value)
        for number, part in enumerate(value):
            yield from _flat(f"{path} {number}", part)
    else:
        yield path, value


def view(directory: Path) -> View:
    """Every value of the checkpoint in `directory`.  Raises ImageError."""
    with ImageReader.open(str(directory)) as images:
        return Checkpoint(images).read()
