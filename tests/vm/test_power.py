# SPDX-License-Identifier: Apache-2.0
"""The power fails, at random moments of repeated checkpoints to a guest's disk: QEMU is killed, and of what the disk
had taken but not flushed, some or all is lost (vmlab/volatile.py).  At the next boot, every checkpoint that Torpor had
finished is complete, the newest complete one restores, and whatever is not complete is recognised as such.

``TORPOR_POWER_FAILURES`` says how many (2 without it); ``TORPOR_POWER_SEED`` repeats a series.
"""

import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from vmlab import VmError, disk, machine
from vmlab.targets import TARGETS
from vmlab.volatile import VolatileDisk

TARGET, KERNEL = TARGETS["x86_64"], "6.12"
MOST = 3  # checkpoints before the power fails in the middle of the next, or just after it
LONG = 5.0  # seconds, for the first
WRITES = 12  # about as many as a checkpoint makes


class Moment:
    """When the power fails: after some checkpoints, and a random time later that lets none or one more end.  Half of
    the times a number of writes later, if these come first: a checkpoint computes longer than it writes."""

    def __init__(self, chance: random.Random, volatile: VolatileDisk) -> None:
        self._disk, self._writes = volatile, chance.choice((None, chance.randint(1, WRITES)))
        self.left, self._at, self._share = chance.randint(0, MOST), time.monotonic(), chance.uniform(0, 1.2)
        self.wait = 0.0

    def cut(self, line: str) -> float | None:
        if "@@RESULT" in line:
            self._at, last = time.monotonic(), LONG
        elif "@@DUMPED" in line:
            last, self._at = time.monotonic() - self._at, time.monotonic()
            self.left -= 1
        else:
            return None
        self.wait = self._share * last
        if self.left == 0 and self._writes is not None:
            self._disk.stand_still(self._writes)
            self.wait = 3 * last
        return self.wait if self.left == 0 else None


class Series:
    """One power failure after the other, on one disk."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.chance = path, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.finished: set[int] = set()  # checkpoints of which the guest had said so
        self.counted = 0

    def one(self, boot: int) -> str:
        """Boot, look at what the power failure before has left, make checkpoints, cut the power."""
        left = self.finished
        volatile = VolatileDisk(self.path, self.path.with_name(f"nbd-{boot}"))
        moment = Moment(self.chance, volatile)
        share = self.chance.choice((0.0, 0.5, 0.9, 1.0))
        outcome = machine.run(
            TARGET, KERNEL, ["/t/switch.py", "/t/power.py"], modules=disk.MODULES, extra=volatile.arguments(),
            cut=moment.cut, timeout=240,
        )  # fmt: skip
        lost, of = volatile.fail(self.chance, share)
        if not outcome.results or outcome.status is not None:
            pytest.fail(str(machine.describe_failure(outcome)), pytrace=False)
        (after,) = outcome.results
        found, restored = {int(n): what for n, what in after["found"].items()}, after["restored"]
        complete = {n for n, what in found.items() if what == "complete"}
        assert left <= complete, f"finished before the power failed: {left}; now: {found}"
        if complete:
            assert restored["checkpoint"] == max(complete)
            assert not restored["wrong"], f"its memory is not whole: {restored}"
            self.counts["restored"] += 1
        self.counts["complete"] += len(complete)
        self.counts["recognised as broken"] += len(found) - len(complete)
        begun = {int(n) for n in re.findall(r'@@DUMPING \{"number": (\d+)', outcome.output)}
        ended = {int(n) for n in re.findall(r'@@DUMPED \{"number": (\d+)', outcome.output)}
        self.counts["cut during a checkpoint"] += bool(begun - ended)
        self.counts["unflushed blocks lost"] += lost
        self.finished = ended | {max(complete, default=0)} - {0}
        where = ", in the middle of one" if begun - ended else ""
        return (
            f"boot {boot}: found {found}, restored {restored}; then {len(ended)} checkpoints, power cut "
            f"{moment.wait:.2f} s later{where}, {lost} of {of} unflushed blocks lost"
        )


@pytest.mark.vm
def test_power() -> None:
    number = int(os.environ.get("TORPOR_POWER_FAILURES", "2"))
    seed = int(os.environ.get("TORPOR_POWER_SEED", str(time.time_ns() % 10**9)))
    with machine.scratch_directory("power-") as scratch:
        series = Series(scratch / "disk", seed)
        try:
            disk.make(TARGET, series.path, KERNEL)
            for boot in range(number + 1):  # the first finds an empty disk
                print(series.one(boot), flush=True)
        except VmError as error:
            pytest.fail(str(error), pytrace=False)
    print(f"{number} power failures (seed {seed}): {dict(series.counts)}")
    assert series.counts["restored"] or number < 5
