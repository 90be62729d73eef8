# SPDX-License-Identifier: Apache-2.0
"""maps and smaps: the kernel shows areas that the test made itself."""

import ctypes
import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torpor.kernel import maps
from torpor.kernel.maps import Area
from torpor.kernel.procfs import LARGE, ParseError, read_all

PAGE = mmap.PAGESIZE


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def area_of(memory: mmap.mmap) -> Area:
    at = address(memory)
    return next(area for area in maps.read_maps(os.getpid()) if area.start <= at < area.end)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 4 * PAGE)
    yield fd
    os.close(fd)


def test_private_file(fd: int, tmp_path: Path) -> None:
    with mmap.mmap(fd, 2 * PAGE, flags=mmap.MAP_PRIVATE, offset=PAGE) as memory:
        area = area_of(memory)
        stat = os.fstat(fd)
        assert area == Area(
            address(memory),
            address(memory) + 2 * PAGE,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_PRIVATE,
            PAGE,
            (os.major(stat.st_dev), os.minor(stat.st_dev)),
            stat.st_ino,
            str(tmp_path / "data"),
        )
        assert (area.size, area.shared, area.deleted, area.has_file) == (2 * PAGE, False, False, True)
        assert maps.kind(area) == "file"


def test_shared_read_only_file(fd: int) -> None:
    with mmap.mmap(fd, PAGE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as memory:
        at = next(a for a in maps.read_maps(os.getpid()) if a.inode == os.fstat(fd).st_ino)
        assert (at.prot, at.flags, at.shared) == (mmap.PROT_READ, mmap.MAP_SHARED, True)
        assert memory[0] == ord("x")


@pytest.mark.parametrize(
    "name", ["two\nlines", "back\\slash", "trailing ", "[heap]", "x (deleted)", "\udcff\udc80", "memfd:x"]
)
@pytest.mark.parametrize("deleted", [False, True])
def test_names_of_files(tmp_path: Path, name: str, deleted: bool) -> None:
    path = tmp_path / name
    with open(path, "w+b", buffering=0) as file:
        file.write(b"x" * PAGE)
        with mmap.mmap(file.fileno(), PAGE, flags=mmap.MAP_PRIVATE) as memory:
            if deleted:
                path.unlink()
            area = area_of(memory)
            assert area.path == str(path) + (" (deleted)" if deleted else "")
            assert area.deleted == (deleted or name.endswith(" (deleted)"))
            assert maps.kind(area) == "file"


def test_kinds_of_memory() -> None:
    memfd = os.memfd_create("some name")
    os.ftruncate(memfd, PAGE)
    with (
        mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_WRITE) as anon,
        mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as shmem,
        mmap.mmap(memfd, PAGE, flags=mmap.MAP_SHARED) as mem,
        mmap.mmap(memfd, PAGE, flags=mmap.MAP_PRIVATE) as private_mem,
    ):
        assert [maps.kind(area_of(m)) for m in (anon, shmem, mem, private_mem)] == ["anon", "shmem", "memfd", "memfd"]
        assert area_of(mem).path == "/memfd:some name (deleted)"
        assert area_of(mem).dev == maps.shm_device()
        assert (area_of(shmem).path, area_of(shmem).shared) == ("/dev/zero (deleted)", True)
        found = {maps.kind(area) for area in maps.read_maps(os.getpid())}
        assert found <= maps.KINDS
        assert {"heap", "stack", "vdso", "vvar"} <= found
    os.close(memfd)


def test_named_anonymous_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for flags, path, kind in (
        (mmap.MAP_PRIVATE, "[anon:a name]", "anon"),
        (mmap.MAP_SHARED, "[anon_shmem:a name]", "shmem"),
    ):
        with mmap.mmap(-1, PAGE, flags=flags | mmap.MAP_ANONYMOUS) as memory:
            if libc.prctl(0x53564D41, 0, ctypes.c_ulong(address(memory)), ctypes.c_ulong(PAGE), b"a name"):
                pytest.skip("this kernel has no CONFIG_ANON_VMA_NAME")
            area = area_of(memory)
            assert (area.path, maps.kind(area)) == (path, kind)


def test_system_v_segment() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    shmid = libc.shmget(0, PAGE, 0o600)
    assert shmid >= 0
    at = libc.shmat(shmid, None, 0)
    try:
        area = next(area for area in maps.read_maps(os.getpid()) if area.start == at)
        assert (maps.kind(area), area.inode, area.path) == ("sysv", shmid, "/SYSV00000000 (deleted)")
    finally:
        libc.shmdt(ctypes.c_void_p(at))
        libc.shmctl(shmid, 0, None)


def test_vm_flags() -> None:
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_DONTFORK)
        flags = maps.read_vm_flags(os.getpid())
        assert {"rd", "wr", "dc"} <= flags[area_of(memory).start]
        memory.madvise(mmap.MADV_DOFORK)
        assert "dc" not in maps.read_vm_flags(os.getpid())[area_of(memory).start]


def test_vm_flags_of_some_areas() -> None:
    """As of all of them, whether one asks for each in their order or for one alone."""
    data = read_all("/proc/self/smaps", LARGE)
    of_all, at = maps.parse_vm_flags(data), 0
    for start, flags in of_all.items():
        found, at = maps.vm_flags_of(data, start, at)
        assert set(found) == flags - {maps.PROTECTION_KEY} == set(maps.vm_flags_of(data, start)[0])
    for absent in (0x1000, max(of_all) + 1):
        with pytest.raises(ParseError):
            maps.vm_flags_of(data, absent)


def test_every_task_here_can_be_read() -> None:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                areas = maps.read_maps(int(entry))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            assert all(a.end <= b.start for a, b in itertools.pairwise(areas))
            assert {maps.kind(area) for area in areas} <= maps.KINDS


def show(area: Area) -> bytes:
    """A line as the kernel writes it (show_map_vma)."""
    perms = "".join(c if area.prot & bit else "-" for c, bit in zip("rwx", (1, 2, 4), strict=True))
    head = f"{area.start:08x}-{area.end:08x} {perms}{'ps'[area.shared]} {area.offset:08x} "
    head += f"{area.dev[0]:02x}:{area.dev[1]:02x} {area.inode} "
    line = head.encode()
    return (line.ljust(73) if area.path else line) + os.fsencode(area.path).replace(b"\n", b"\\012") + b"\n"


WORD = st.integers(0, 2**64 - 1)
PATHS = st.binary(max_size=40).map(lambda b: b"/" + b.replace(b"\0", b"")).filter(lambda b: b"\\012" not in b)
AREAS = st.builds(
    Area,
    WORD,
    WORD,
    st.integers(0, 7),
    st.sampled_from([mmap.MAP_SHARED, mmap.MAP_PRIVATE]),
    WORD,
    st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    WORD,
    st.one_of(st.just(""), st.sampled_from(["[heap]", "[anon:  x]"]), PATHS.map(os.fsdecode)),
)


@given(st.lists(AREAS, max_size=5))
def test_what_the_kernel_writes_is_read_back(areas: list[Area]) -> None:
    assert maps.parse_maps(b"".join(map(show, areas))) == areas
    assert {maps.kind(area) for area in areas} <= maps.KINDS


@given(st.binary())
@example(b"0-1 r--p 0 0:0 0")
@example(b"0-1 r--p 0 0:0 0\n")
@example(b"0-1 r--p 0 0 0\n")
@example(b"VmFlags: rd\n")
@example(b"00-01 rw-p\nVmFlags: \xff\n")
def test_nonsense_is_a_parse_error(data: bytes) -> None:
    for parse in (maps.parse_maps, maps.parse_vm_flags):
        try:
            parse(data)
        except ParseError as error:
            assert str(error)
