# SPDX-License-Identifier: Apache-2.0
"""The power fails, at random moments of repeated checkpoints to a guest's disk: QEMU is killed, and of what the disk
had taken but not flushed, some or all is lost (`vmlab.volatile`).  When the guest is back, every checkpoint that Torpor
had finished is complete, all complete ones restore, and whatever is not complete is recognised as such.

``TORPOR_POWER_FAILURES`` says how many (50 without it, each a few seconds of a processor); ``TORPOR_POWER_SEED``
repeats the choices of a series: how far the guest has come by then is not the same twice.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
from vmlab import VmError, disk, jobs, machine
from vmlab.powerloss import BETWEEN, PHASES, Series, failures, first_seed, report
from vmlab.saved import SavedGuest
from vmlab.targets import TARGETS
from vmlab.volatile import VolatileDisk

KERNEL = "6.12"
# What costs an emulated processor time, and has nothing to do with disks.
TARGET = TARGETS["x86_64"]._replace(board=("-M", "q35", "-cpu", "max,-cx16,-la57,-smap,-pku"))
MODULES = ("virtio_pci", "crc32c_generic", "crc32c", "ext4")  # the guest itself loads the disk's driver
MEGABYTES = 96
KINDS = ("time", "request", "phase", "early")
OFTEN = (4, 4, 5, 1)  # of 14 failures
ALL_PHASES = 42  # failures, after which each phase was chosen at least once
TRIES = 4


def shuffled(chance: random.Random, what: tuple[str, ...]) -> Iterator[str]:
    """All of it in random order, again and again."""
    while True:
        yield from chance.sample(what, len(what))


@pytest.fixture(scope="module")
def saved() -> Iterator[SavedGuest]:
    """A guest that has never seen its disk."""
    with machine.scratch_directory("power-") as scratch:
        try:
            disk.empty(scratch / "disk", MEGABYTES)
            volatile = VolatileDisk(scratch / "disk", scratch / "nbd")
            guest = SavedGuest(
                TARGET, KERNEL, ["/t/power.py"],
                modules=MODULES, directory=scratch, extra=volatile.arguments(),
            )  # fmt: skip
            volatile.fail(random.Random(0), 1.0)
        except VmError as error:
            pytest.fail(str(error), pytrace=False)
        yield guest


def series(saved: SavedGuest, seed: int, name: str, sync: bool = True) -> Series:
    path = saved.directory / name
    disk.empty(path, MEGABYTES)
    return Series(saved, path, seed, sync)


def plan(seed: int, number: int) -> list[tuple[str, str]]:
    """For each failure of which kind it is, and in which phase."""
    chance = random.Random(seed)
    kinds = shuffled(chance, tuple(kind for kind, often in zip(KINDS, OFTEN, strict=True) for _ in range(often)))
    phases = shuffled(chance, PHASES)
    return [(kind, next(phases) if kind == "phase" else "") for kind in islice(kinds, number)]


def go_on(power: Series, name: str, planned: list[tuple[str, str]]) -> Series:
    """Let it fail as planned, or until a checkpoint has been lost."""
    for failure, (kind, phase) in enumerate(planned, 1):
        print(f"{name}, {failure}: {power.fail(kind, phase)}", flush=True)
        if power.problems:
            break
    return power


def go_on_until_all(done: list[Series]) -> None:
    """Chance may have missed a phase: some take a thousandth of the time, and some calls come only now and then."""
    for phase in PHASES:
        for _ in range(TRIES):
            if any(power.where[phase] or power.problems for power in done):
                break
            print(f"missed so far: {done[0].fail('phase', phase)}", flush=True)


def look(power: Series) -> None:
    """What the last failure has left."""
    if not power.problems:
        print(f"afterwards: {power.look()}", flush=True)


@pytest.mark.vm
@pytest.mark.boots(KERNEL, arch=TARGET.arch)
def test_power(saved: SavedGuest, record_property: Callable[[str, object], None]) -> None:
    number, seed = failures(), first_seed()
    print(f"seed {seed}; the guest was there and saved after {saved.seconds:.0f} s")
    begun, planned = time.monotonic(), plan(seed, number)
    names = [f"disk-{job}" for job in range(min(jobs(), number))]
    try:
        with ThreadPoolExecutor(len(names)) as pool:
            runs = [
                pool.submit(go_on, series(saved, seed + job, name), name, planned[job :: len(names)])
                for job, name in enumerate(names)
            ]
            done = [run.result() for run in runs]
        if number >= ALL_PHASES:
            go_on_until_all(done)
        for power in done:
            look(power)
    except VmError as error:
        pytest.fail(str(error), pytrace=False)
    counts, where = Counter[str](), Counter[str]()
    for power in done:
        counts.update(power.counts)
        where.update(power.where)
    record_property("said", f"seed {seed}: {report(counts, where, time.monotonic() - begun)}")
    assert not [problem for power in done for problem in power.problems]
    assert counts["complete, restored"] or number < 5
    if number >= ALL_PHASES:
        assert counts["broken, recognised"]
        assert all(where[phase] for phase in PHASES)


@pytest.mark.vm
@pytest.mark.boots(KERNEL, arch=TARGET.arch)
def test_power_without_fsync(saved: SavedGuest, record_property: Callable[[str, object], None]) -> None:
    """If Torpor waited for no disk, checkpoints would be lost that it had called finished, and this would show it."""
    power = series(saved, 1, "disk-unsynced", sync=False)
    begun = time.monotonic()
    for _ in range(2):
        print(power.fail("phase", BETWEEN))
    print(power.look())
    record_property("said", report(power.counts, power.where, time.monotonic() - begun))
    assert power.counts["finished, lost"]
