# SPDX-License-Identifier: Apache-2.0
"""Images of CRIU's can hold what Torpor does not restore: refused in words that name it, before anything is created;
never passed over, so that a program comes back with something else in its place, and never called mangled."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import peer
import torpor
from check.support import Victim
from check.support import torpor as command
from torpor.check_images import ImagesReport
from torpor.images import kinds
from torpor.images.container import encode_entries, start_of
from torpor.images.directory import ImageReader
from torpor.images.schema.constants import VmaStatus

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OWNER = """
import mmap, os, time
memfd = os.memfd_create("held"); os.ftruncate(memfd, 4096)
area = mmap.mmap(memfd, 4096)
event = os.eventfd(0)
print("ready", flush=True)
time.sleep(1000)
"""
MAP_HUGETLB, HUGETLB_OF_2_MIB, EVENTFD = 0x40000, 21 << 26 | 4, 6


def check(images: Path) -> ImagesReport:
    report = torpor.check(images=images, manage_cgroups="ignore")
    assert isinstance(report, ImagesReport)
    return report


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("foreign")
    (place / "images").mkdir()
    with Victim(place, sys.executable, "-c", OWNER) as victim:
        torpor.dump(victim.pid, place / "images", manage_cgroups="ignore")
    yield place / "images"


Change = tuple[Any, int | None, Callable[[list[Any]], None]]  # which image, and what is done to its entries


def changed(images: Path, *changes: Change) -> ImagesReport:
    """What the check says of the images so changed; afterwards they are as before."""
    before = {path: path.read_bytes() for path in images.iterdir()}
    for kind, id, change in changes:
        with ImageReader.open(str(images)) as reader:
            entries = deepcopy(reader.entries(kind, id))  # what is alike is shared
        change(entries)
        (images / kind.file_name(id)).write_bytes(b"".join([start_of(kind), *encode_entries(entries)]))
    try:
        return check(images)
    finally:
        for path, data in before.items():
            path.write_bytes(data)


def words(report: ImagesReport) -> str:
    """Why; and it is no mangled image."""
    said = [one for one in report.obstacles if one.code != "pid-taken"]
    assert said and all(one.code == "unsupported" for one in said), said
    return " ".join(map(str, said))


def root(images: Path) -> int:
    with ImageReader.open(str(images)) as reader:
        return int(reader.entries(kinds.PSTREE)[0].pid)


def table_of(images: Path) -> int:
    with ImageReader.open(str(images)) as reader:
        return int(reader.one(kinds.IDS, reader.entries(kinds.PSTREE)[0].pid).files_id)


def test_as_they_are(images: Path) -> None:
    assert all(one.code == "pid-taken" for one in check(images).obstacles)


@pytest.mark.parametrize(
    ("field", "bit", "name"),
    [
        ("flags", MAP_HUGETLB, "hugetlb pages"),
        ("status", VmaStatus.VMA_AREA_AIORING, "asynchronous I/O (io_setup)"),
        ("status", VmaStatus.VMA_AREA_SOCKET, "ring buffer"),
        ("status", VmaStatus.VMA_AREA_SHSTK, "shadow stack"),
        ("status", VmaStatus.VMA_AREA_UPROBES, "uprobes"),
        ("status", VmaStatus.VMA_EXT_PLUGIN, "plugin"),
    ],
)
def test_areas(images: Path, field: str, bit: int, name: str) -> None:
    pid = root(images)

    def change(entries: list[Any]) -> None:
        area = next(one for one in entries[0].vmas if one.status == 0x201 and one.prot == 3)
        setattr(area, field, getattr(area, field) | bit)

    said = words(changed(images, (kinds.MM, pid, change)))
    assert name in said and f"task {pid} (" in said and "does not restore" in said


def test_a_memfd_of_huge_pages(images: Path) -> None:
    def change(entries: list[Any]) -> None:
        (one,) = entries
        one.hugetlb_flag = HUGETLB_OF_2_MIB

    said = words(changed(images, (kinds.MEMFD_INODE, None, change)))
    assert "memfd held" in said and "hugetlb pages" in said


@pytest.mark.parametrize(
    ("type", "name"),
    [(8, "inotify descriptor"), (10, "packet socket"), (12, "fanotify descriptor"), (13, "netlink socket"),
     (14, "namespace"), (15, "tun or tap device"), (16, "plugin"), (19, "BPF object"), (20, "pidfd"), (99, "type 99")],
)  # fmt: skip
def test_files(images: Path, type: int, name: str) -> None:
    def change(entries: list[Any]) -> None:
        next(one for one in entries if one.type == EVENTFD).type = type

    table = kinds.FDINFO, table_of(images), change
    assert name in words(changed(images, (kinds.FILES, None, change), table))


FILTERED = """
held = socket.socket(socket.%s, socket.SOCK_DGRAM)
code = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))  # takes nothing
held.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))  # SO_ATTACH_FILTER
"""
PROGRAMS = {
    "aio": ("assert libc.syscall(206, 8, ctypes.byref(ctypes.c_ulong(0))) == 0", "asynchronous I/O (io_setup)"),
    "inotify": ("assert libc.inotify_init() >= 0", "inotify descriptor"),
    "pidfd": ("held = os.pidfd_open(os.getpid())", "pidfd"),
    "filter-inet": (FILTERED % "AF_INET", "filter program"),
    "filter-unix": (FILTERED % "AF_UNIX", "filter program"),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="CRIU is of x86_64, and so is the number of io_setup")
@pytest.mark.parametrize("name", PROGRAMS)
def test_dumped_by_criu(name: str, tmp_path: Path) -> None:
    criu, why = peer.criu()
    if criu is None:
        pytest.skip(f"no peer: {why}")
    statement, expected = PROGRAMS[name]
    images = tmp_path / "images"
    images.mkdir()
    program = f"import ctypes, os, socket, struct, time\nlibc = ctypes.CDLL(None)\n{statement}\n"
    with Victim(tmp_path, sys.executable, "-c", f"{program}print('ready', flush=True)\ntime.sleep(1000)") as victim:
        assert victim.first == "ready"
        dumped = subprocess.run([criu, "dump", "-t", str(victim.pid), "-D", images, "-o", "log"], capture_output=True)
        assert dumped.returncode == 0, (images / "log").read_text()[-2000:]
        assert victim.process.wait(10) == -signal.SIGKILL
    done = command("restore", "-d", "-D", images, "--manage-cgroups=ignore")
    assert done.returncode == 1 and not os.path.exists(f"/proc/{victim.pid}")
    assert expected in done.stderr and "restore" in done.stderr and "mangled" not in done.stderr, done.stderr
