# SPDX-License-Identifier: Apache-2.0
"""Where [sigpage] of 32-bit ARM goes (`torpor.memory.vdso_place`), on any machine; in guests, clockwork.py needs it."""

from types import SimpleNamespace

import pytest
from attributekit import restore, task

from torpor.errors import Refusal
from torpor.images.schema.torpor_host import TorporHostEntry
from torpor.images.schema.vma import VmaEntry
from torpor.kernel.maps import Area
from torpor.memory import sigpage
from torpor.memory.kernels_areas import NONE, Kernels, Place
from torpor.memory.vdso_place import Places

PAGE, OLD, SPARE = 4096, 0x10000, 0x90000
SIGNALS, DATA, CODE = ((OLD + n * PAGE, OLD + (n + 1) * PAGE) for n in range(3))
FRESH = 0x50000


@pytest.fixture
def places() -> Places:
    made = object.__new__(Places)
    made.kernels = Kernels(PAGE, bytes(PAGE), b"new".ljust(PAGE, b"\0"))
    return made


def area(start: int, end: int, prot: int) -> VmaEntry:
    return VmaEntry(start=start, end=end, pgoff=0, shmid=0, prot=prot, flags=0, status=0x1000, fd=-1)


def moved(places: Places, place: Place) -> list[int]:
    names = "[sigpage]", "[vvar]", "[vdso]"
    now = [Area(FRESH + n * PAGE, FRESH + (n + 1) * PAGE, 5, 2, 0, (0, 0), 0, name) for n, name in enumerate(names)]
    return [to for _, _, to in places._moves(now, place)]


def test_all_of_them_go_to_their_old_places(places: Places) -> None:
    place = Place(DATA, CODE, b"", 0, SIGNALS)
    assert moved(places, place) == [SIGNALS[0], DATA[0], CODE[0]]
    assert not place.left


def test_the_old_page_stays_and_the_kernels_lies_elsewhere(places: Places) -> None:
    place = Place(DATA, CODE, b"", SPARE, SIGNALS, b"old")
    assert moved(places, place) == [SPARE, DATA[0], CODE[0]]
    assert place.left == [(SIGNALS, 5, b"old")]
    assert place.is_left(OLD)
    assert not place.is_left(DATA[0])


def test_beside_the_text_of_another_kernel(places: Places) -> None:
    place = Place(DATA, CODE, b"text", SPARE, SIGNALS, b"old")
    assert moved(places, place) == [SPARE, SPARE + PAGE, SPARE + 2 * PAGE]
    assert place.left == [(DATA, 1, b""), (CODE, 5, b"text"), (SIGNALS, 5, b"old")]


def test_what_a_task_does_not_have_is_put_aside(places: Places) -> None:
    assert moved(places, Place(NONE, NONE, b"", SPARE, SIGNALS)) == [SIGNALS[0], SPARE + PAGE, SPARE + 2 * PAGE]
    assert moved(places, Place(DATA, CODE, b"", SPARE, NONE)) == [SPARE, DATA[0], CODE[0]]


def test_images_of_older_torpors_have_it_in_one_area_with_the_data(places: Places) -> None:
    assert places._apart([area(SIGNALS[0], DATA[1], 1)]) == (SIGNALS, DATA)
    assert places._apart([area(*SIGNALS, 5), area(*DATA, 1)]) == (SIGNALS, DATA)
    assert places._apart([area(*DATA, 1)]) == (NONE, DATA)


def test_whoever_needs_what_the_images_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = task(), restore()
    found: list[Refusal] = []
    said: list[str] = []
    host: list[TorporHostEntry | None] = [
        TorporHostEntry(boot_id="another", release="", monotonic_offset=0, boottime_offset=0), None
    ]  # fmt: skip
    monkeypatch.setattr(asked, "problem", found.append, raising=False)
    monkeypatch.setattr(asked, "images", SimpleNamespace(find=lambda _: host[0]), raising=False)
    monkeypatch.setattr(sigpage.log, "warning", said.append)
    assert sigpage.stored(asked) == b""
    sigpage.refuse(asked, made, 7)
    assert ([one.code for one in found], said) == (["inside-vdso"], [])
    del host[0]
    sigpage.refuse(asked, made, 7)
    assert len(found) == 1
    assert "if they come from another boot, it will not return" in said[0]
