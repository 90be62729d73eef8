# SPDX-License-Identifier: Apache-2.0
"""Which clocks a tree gets, by what its images know; test_elsewhere.py has whole trees."""

from types import SimpleNamespace
from typing import Any

import pytest

from torpor.errors import Refusal
from torpor.images import kinds
from torpor.images.schema.timens import TimensEntry, Timespec
from torpor.images.schema.torpor_host import TorporHostEntry
from torpor.resources import clocks
from torpor.resources.clocks import SECOND, Clocks

BOOT, NOW = "this", Clocks(500 * SECOND, 600 * SECOND)
NOTHING = Clocks(0, 0)


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "_boot_id", lambda: BOOT)
    monkeypatch.setattr(clocks, "_now", lambda: NOW)


def wanted(boot: str, then: Clocks | None, id: int = 0) -> Clocks | None:
    """Of images of a boot ("": they do not tell, as CRIU's), whose clocks said `then`."""
    found: dict[object, object] = {}
    if boot:
        found[kinds.TORPOR_HOST] = TorporHostEntry(boot_id=boot, release="", monotonic_offset=0, boottime_offset=0)
    if then is not None:
        seconds = (Timespec(tv_sec=clock // SECOND, tv_nsec=clock % SECOND) for clock in then)
        found[kinds.TIMENS] = TimensEntry(monotonic=next(seconds), boottime=next(seconds))
    images = SimpleNamespace(find=lambda kind, id=None: found.get(kind))
    restore: Any = SimpleNamespace(images=images)
    return clocks._wanted(restore, id, NOTHING)


BEFORE, LATER = Clocks(400 * SECOND, 450 * SECOND), Clocks(900 * SECOND, 950 * SECOND)
SLEPT = Clocks(400 * SECOND, 950 * SECOND)  # behind by one clock, ahead by the other


@pytest.mark.parametrize("boot", [BOOT, ""])
def test_time_goes_on_by_itself(boot: str) -> None:
    """On the same boot, and where the images do not tell, the time that the tree was away has passed for it."""
    assert wanted(boot, BEFORE) == NOTHING
    assert wanted(boot, NOW) == NOTHING
    assert wanted(boot, None) == NOTHING


@pytest.mark.parametrize("boot", [BOOT, "", "another"])
@pytest.mark.parametrize("then", [LATER, SLEPT])
def test_no_clock_goes_back(boot: str, then: Clocks) -> None:
    assert wanted(boot, then) == then.minus(NOW)


def test_another_boot() -> None:
    assert wanted("another", BEFORE) == BEFORE.minus(NOW)
    assert wanted("another", None) is None


def test_a_time_namespace_of_its_own() -> None:
    """In CRIU's images: nobody knows what its offsets were."""
    assert wanted("", BEFORE, clocks.TREES) == BEFORE.minus(NOW)


def test_all_tasks_are_in_one_time_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "offsets", lambda pid: NOTHING)
    refused: list[Refusal] = []
    dump: Any = SimpleNamespace(state={}, refuse=refused.append)
    for pid, namespace in ((1, 7), (2, 7), (3, 8)):
        task: Any = SimpleNamespace(
            pid=pid,
            leader=SimpleNamespace(tid=pid),
            refusal=lambda why, remedy, code, pid=pid: Refusal(f"task {pid}", why, remedy, code=code),
        )
        clocks.examine(task, dump, namespace, 6)
    (one,) = refused
    assert (one.what, one.code) == ("task 3", "namespace")
    assert "another time namespace than other tasks" in one.why
