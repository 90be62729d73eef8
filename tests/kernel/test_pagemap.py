# SPDX-License-Identifier: Apache-2.0
"""Pages to store: the test knows what it touched.  Every way to find them must say the same."""

import ctypes
import itertools
import mmap
import os
import random
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.kernel import pagemap, pagemap_file
from torpor.kernel.pagemap import Abilities
from torpor.kernel.pagemap_file import PAGE, Run

REAL = pagemap.abilities()
WAYS = {
    "native": REAL,
    "file": REAL._replace(scan=False, guard=False),
    "scan-without-guard": REAL._replace(guard=False),
}
MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 102, 103


@pytest.fixture(params=WAYS)
def how(request: pytest.FixtureRequest) -> Abilities:
    way = WAYS[request.param]
    if way.scan and not REAL.scan:
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    return way


@pytest.fixture
def own() -> Iterator[int]:
    fd = pagemap.open_pagemap(os.getpid())
    yield fd
    os.close(fd)


def private(pages: int, fd: int = -1) -> mmap.mmap:
    memory = mmap.mmap(fd, pages * PAGE, flags=mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if fd < 0 else 0))
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def numbers(runs: list[Run], memory: mmap.mmap) -> set[int]:
    """The page numbers in the area that the runs cover; runs must be sorted and apart."""
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))
    return {(page - address(memory)) // PAGE for start, end in runs for page in range(start, end, PAGE)}


def scan(fd: int, memory: mmap.mmap, how: Abilities) -> set[int]:
    return numbers(pagemap.scan(fd, address(memory), address(memory) + len(memory), how), memory)


def test_anonymous(own: int, how: Abilities) -> None:
    rng = random.Random(1)
    with private(3000) as memory:
        written, guarded = set(), set()
        for page in range(3000):
            what = rng.choice(["nothing", "read", "write", "guard"])
            if what == "read":
                assert memory[page * PAGE] == 0
            elif what == "write":
                memory[page * PAGE] = 0  # a page of zeroes of its own is content
                written.add(page)
            elif REAL.guard_entry is not None:
                memory.madvise(MADV_GUARD_INSTALL, page * PAGE, PAGE)
                guarded.add(page)
        assert scan(own, memory, how) == written
        start = address(memory)
        assert numbers(pagemap.guard_runs(own, start, start + len(memory), how), memory) == guarded
        told: list[Run] = []
        assert numbers(pagemap.scan(own, start, start + len(memory), how, told), memory) == written
        assert numbers(told, memory) == guarded


def test_private_file(own: int, how: Abilities, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 10 * PAGE)
    fd = os.open(path, os.O_RDWR)
    with private(10, fd) as memory:
        assert memory[0] + memory[3 * PAGE] == 2 * ord("x")
        memory[3 * PAGE] = memory[9 * PAGE] = 1
        assert scan(own, memory, how) == {3, 9}
    os.close(fd)


def test_without_access(own: int, how: Abilities) -> None:
    with private(4) as memory:
        memory[PAGE] = 1
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(address(memory)), ctypes.c_size_t(4 * PAGE), 0)
        assert scan(own, memory, how) == {1}
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(address(memory)), ctypes.c_size_t(4 * PAGE), 3)


def test_huge_pages(own: int, how: Abilities) -> None:
    size = 8 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory[0:size:PAGE] = b"x" * (size // PAGE)
        assert scan(own, memory, how) == set(range(size // PAGE))


def test_more_runs_than_one_call_returns(own: int, how: Abilities) -> None:
    count = 2 * pagemap.REGIONS + 100
    with private(2 * count) as memory:
        memory[0 : len(memory) : 2 * PAGE] = b"x" * count
        assert scan(own, memory, how) == set(range(0, 2 * count, 2))


def test_another_process(how: Abilities) -> None:
    with private(100) as memory:
        memory[50 * PAGE] = 1
        pid = os.fork()
        if pid == 0:
            memory[60 * PAGE] = 1
            signal.pause()
            os._exit(0)
        try:
            fd = pagemap.open_pagemap(pid)
            while scan(fd, memory, how) != {50, 60}:
                pass
            os.close(fd)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Part:
    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end


@pytest.mark.parametrize("seed", range(5))
def test_many_areas_at_once(own: int, how: Abilities, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "GAP", 8 * PAGE)
    rng = random.Random(seed)
    with private(2000) as memory:
        for page in range(2000):
            if rng.random() < 0.5:
                memory[page * PAGE] = 1
            elif rng.random() < 0.2 and REAL.guard_entry is not None:
                memory.madvise(MADV_GUARD_INSTALL, page * PAGE, PAGE)
        base = address(memory)
        areas: list[Part] = []
        others: list[Part] = []
        at = 0
        while at < 1950:
            size = rng.choice([1, 2, 5, 40])
            rng.choice([areas, areas, others, []]).append(Part(base + at * PAGE, base + (at + size) * PAGE))
            at += size
        apart = [pagemap.scan(own, area.start, area.end, how) for area in areas]
        told: list[Run] = []
        assert pagemap.scan_all(own, areas, others, how, told) == apart
        guards = [pagemap.guard_runs(own, area.start, area.end, how) for area in areas]
        assert told == [run for runs in guards for run in runs]
        assert pagemap.scan_all(own, areas, how=how) == apart
        assert pagemap.scan_all(own, [], others, how) == []


def test_a_zombie_has_no_pages() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        fd = pagemap.open_pagemap(pid)
    except ProcessLookupError:
        pass
    else:
        assert os.pread(fd, 8, 0) == b""
        os.close(fd)
    os.waitpid(pid, 0)


def runs_of(pages: set[int]) -> list[Run]:
    runs: list[Run] = []
    for page in sorted(pages):
        pagemap_file.append(runs, page, page + 1)
    return runs


PAGES = st.sets(st.integers(0, 60))


@given(PAGES, PAGES)
def test_subtract(first: set[int], second: set[int]) -> None:
    left = pagemap_file.subtract(runs_of(first), runs_of(second))
    assert left == runs_of(first - second)


@given(
    st.lists(st.sampled_from([0, 1, 0x0100, 1 << 63 | 0x3B34, 1 << 63 | 1 << 55 | 0x3B34, 0x3B34, 0x3B34 << 8])),
    st.data(),
)
def test_entries_that_are_the_same(entries: list[int], data: st.DataObject) -> None:
    wanted = data.draw(st.sampled_from([0, 1, 0x100, 1 << 63 | 0x3B34]))
    mask = data.draw(
        st.sampled_from([pagemap_file.PFN_MASK, pagemap_file.WHOLE_ENTRY, pagemap_file.PRESENT | pagemap_file.PFN_MASK])
    )
    expected = runs_of({i for i, entry in enumerate(entries) if not (entry ^ wanted) & mask})
    assert pagemap_file.same(struct.pack(f"={len(entries)}Q", *entries), wanted, mask) == expected
