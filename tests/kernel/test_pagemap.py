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

from torpor.kernel import pagemap, pagemap_file, zero_pages
from torpor.kernel.pagemap import Abilities
from torpor.kernel.pagemap_file import PAGE, Run


def learnt() -> tuple[zero_pages.Block, ...]:
    fd = pagemap.open_pagemap("self")
    try:
        return zero_pages.learn(fd)
    finally:
        os.close(fd)


REAL = pagemap.abilities()
WAYS = {
    "native": REAL,
    "file": REAL._replace(scan=False, guard=False, zeros=learnt()),
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


def test_zero_pages_are_learnt_only_where_the_kernel_does_not_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bool(REAL.zeros) != REAL.scan
    assert learnt()

    def no_scan(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(pagemap, "ioctl_scan", no_scan)
    assert pagemap._probe() == REAL._replace(scan=False, guard=False, zeros=learnt())


@pytest.mark.parametrize("colours", [1, 2, 4, 16, 128, 256])
def test_zero_pages_are_learnt_whatever_their_number(colours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def coloured(_: int, start: int, end: int) -> tuple[int, ...]:
        return tuple(1 << 63 | 0x3B80 + number % colours for number in range(start // PAGE, end // PAGE))

    monkeypatch.setattr(zero_pages, "entries", coloured)
    assert learnt() == zero_pages.blocks(set(range(0x3B80, 0x3B80 + colours)))


def test_pages_of_our_own_are_not_taken_for_zero_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_pages, "entries", lambda _, start, end: range(1, (end - start) // PAGE + 1))
    assert learnt() == ()
    monkeypatch.setattr(zero_pages, "entries", lambda _, start, end: (1 << 63,) * ((end - start) // PAGE))
    assert learnt() == ()  # no rights: every frame is 0


def test_zero_runs(own: int, how: Abilities) -> None:
    with private(8) as memory:
        _ = memory[PAGE], memory[2 * PAGE], memory[5 * PAGE]
        memory[3 * PAGE] = 1
        start = address(memory)
        assert numbers(pagemap.zero_runs(own, start, start + len(memory), how), memory) == {1, 2, 5}


def test_a_page_of_any_zero_page_is_not_stored(tmp_path: Path) -> None:
    """A pagemap that the test has written; the pages around have frames beside the zero pages'."""
    zeros = {0x3B80 + colour for colour in range(128)}
    own, unlike = 1 << 63 | 1 << 56 | 0x123456, 1 << 63 | 0x13B80
    pages = [own, *(1 << 63 | frame for frame in range(0x3B7F, 0x3C01)), unlike, 0, own]
    path = tmp_path / "pagemap"
    path.write_bytes(struct.pack(f"={len(pages)}Q", *pages))
    with path.open("rb") as file:
        stored = pagemap_file.stored_runs(file.fileno(), 0, len(pages) * PAGE, zero_pages.blocks(zeros), None)
        assert [(a // PAGE, b // PAGE) for a, b in stored] == [(0, 2), (130, 132), (133, 134)]
        stored = pagemap_file.stored_runs(file.fileno(), 0, len(pages) * PAGE, (), None)
        assert [(a // PAGE, b // PAGE) for a, b in stored] == [(0, 132), (133, 134)]


FRAMES = st.sets(
    st.one_of(
        st.integers(1, (1 << 55) - 1),
        st.integers(0x3B80, 0x3BFF),
        st.builds(lambda high, low: high << 48 | low, st.integers(0, 3), st.integers(1, 0x2FF)),
    ),
    max_size=20,
)


@given(FRAMES, st.data(), st.booleans())
def test_entries_of_zero_pages(frames: set[int], data: st.DataObject, little: bool) -> None:
    if frames:  # and what differs from them in one bit, or is put together from two of them
        one = st.sampled_from(sorted(frames))
        near = st.builds(lambda frame, bit: frame ^ 1 << bit, one, st.integers(0, 54))
        some = st.one_of(one, near, st.builds(lambda first, second: first & ~0xFF | second & 0xFF, one, one))
    else:
        some = st.integers(0, (1 << 55) - 1)
    flags = st.integers(0, 0x1FF).map(lambda top: top << 55)
    pages = data.draw(st.lists(st.builds(lambda frame, top: frame | top, some, flags)))
    found = zero_pages.runs(
        struct.pack(f"{'<' if little else '>'}{len(pages)}Q", *pages), zero_pages.blocks(frames, little)
    )
    expected = {
        index for index, entry in enumerate(pages) if entry >> 62 == 2 and entry & pagemap_file.PFN_MASK in frames
    }
    assert found == runs_of(expected)


@pytest.mark.parametrize("little", [True, False])
def test_each_bit_of_a_zero_pages_entry_counts(little: bool) -> None:
    """But for those from soft-dirty (55) to file (61)."""
    zero = 1 << 63 | 0x5A3B8012345678
    known = zero_pages.blocks({0x5A3B8012345678}, little)
    for bit in range(64):
        data = struct.pack("<2Q" if little else ">2Q", zero, zero ^ 1 << bit)
        assert zero_pages.runs(data, known) == [(0, 2 if 55 <= bit <= 61 else 1)], bit


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
