# SPDX-License-Identifier: Apache-2.0
"""Power failures, one after the other, of a guest that makes checkpoints to its disk (guest/power.py): when each comes,
what the guest says until then, and what it must find afterwards.
"""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from . import VmError, a_number
from .saved import Guest, SavedGuest
from .volatile import VolatileDisk

BEFORE = (4, 3, 1)  # how often there are 0, 1, 2 checkpoints before the one at which the power fails
SILENCE = 300.0  # seconds without a line after which a guest is given up
LOOK = "while the guest looks at what was left"
REPLACE, REMOVE = "while the old one is replaced: it ends", "while the old one is removed"
AFTER, BETWEEN = "after the rename of inventory.img", "between two checkpoints"
PHASES = (
    "before its first write", REPLACE, "while pages are written", "while other images are written",
    "while pages go to the disk", "between the fsyncs of the others", "before the rename of inventory.img", AFTER,
    REMOVE, BETWEEN,
)  # fmt: skip
COUNTS = (
    "failures", "failures after which one was restored", "complete, restored", "broken, recognised", "finished, lost",
    "restored, memory wrong", "restored, file older", "unflushed blocks lost",
)  # fmt: skip


def failures() -> int:
    """How many failures one run has.  Raises VmError where $TORPOR_POWER_FAILURES is no such number."""
    return a_number("TORPOR_POWER_FAILURES", 50, "how often the power fails, 1 or more", least=1)


def first_seed() -> int:
    """Of the choices of the run's first series.  Raises VmError where $TORPOR_POWER_SEED is no number."""
    return a_number(
        "TORPOR_POWER_SEED", time.time_ns() % 10**9, "which choices are repeated: a number that a run has said"
    )


class Usual:
    """What the last whole checkpoint of its kind was like, with what follows it."""

    def __init__(self) -> None:
        self.seconds, self.requests = 3.0, 50
        self.marks: Counter[str] = Counter()


class Moment:
    """When the power fails: at any time of a checkpoint (and of removing the old one), at any request to the disk, or
    at any system call of a phase, each phase as often as the others, for some take a thousandth of the time.  Now and
    then it fails before the guest has looked at what the failure before has left."""

    def __init__(self, chance: random.Random, kind: str, phase: str) -> None:
        self.kind, self.phase = kind, phase
        self.replace = chance.random() < 0.5
        (self.skip,) = chance.choices(range(len(BEFORE)), BEFORE)
        if self.phase in (REPLACE, REMOVE):
            self.replace, self.skip = self.phase == REPLACE, max(self.skip, 1)  # there is an old one by then
        self.share = chance.uniform(0, 1.05)
        self.chance = chance

    def pause(self, usual: Usual) -> tuple[int, str, int] | None:
        """For the guest: stop in the so-manyth checkpoint, at the so-manyth system call of a phase."""
        if self.kind != "phase":
            return None
        return self.skip + 1, self.phase, self.chance.randrange(max(usual.marks[self.phase], 1))


class Series:
    """One power failure after the other, on one disk.

    `kept` are the checkpoints that the guest had said to be finished, by directory; `in_flux` are the directories in
    which one was being made or removed, with the numbers of the checkpoints that may be found there."""

    def __init__(self, guest: SavedGuest, path: Path, seed: int, sync: bool = True) -> None:
        self._guest, self._path, self._sync = guest, path, sync
        self._chance = random.Random(seed)
        self._usual = {True: Usual(), False: Usual()}
        self._looking = 2.0  # seconds
        self._boots: set[str] = set()
        self._number = 0  # of the newest checkpoint that was begun
        self.kept: dict[str, int] = {}
        self.in_flux: dict[str, set[int]] = {}
        self.counts = Counter(dict.fromkeys(COUNTS, 0))
        self.where: Counter[str] = Counter()
        self.problems: list[str] = []

    def fail(self, kind: str, phase: str) -> str:
        """Let the guest look at what was left and make checkpoints; cut the power.  Returns what happened."""
        moment = Moment(self._chance, kind, phase)
        run = self._resume(moment)
        self.counts["failures"] += 1
        self.where[run.phase] += 1
        self.counts["unflushed blocks lost"] += run.lost
        return (
            f"{run.said}; {run.dumped} checkpoints; power cut {run.phase} ({kind}), {run.lost} of {run.of} blocks "
            f"lost; {run.cpu:.1f} s of QEMU, {self.looking:.1f} s to look, {run.usual.seconds:.1f} s a checkpoint"
        )

    def look(self) -> str:
        """What the last failure has left."""
        return self._resume(None).said

    def _resume(self, moment: Moment | None) -> "Run":
        at = self._path.with_name("nbd-" + self._path.name)
        volatile = VolatileDisk(self._path, at)
        usual = self._usual[moment.replace] if moment else Usual()
        told = {
            "time": time.time(), "entropy": self._chance.randbytes(64).hex(), "number": self._number,
            "options": self._chance.choice(("data=ordered", "data=writeback")) + ",commit=1",
            "replace": bool(moment and moment.replace), "pause": moment.pause(usual) if moment else None,
            "sync": self._sync, "hint": self._chance.random() < 0.5,
        }  # fmt: skip
        with self._guest.resume(volatile.arguments()) as guest:
            run = Run(self, moment, usual, guest, volatile, told)
            run.follow()
        run.cpu = guest.cpu
        self.counts["QEMU's milliseconds"] += int(guest.cpu * 1000)
        run.lost, run.of = volatile.fail(self._chance, self._chance.choice((0.0, 0.5, 0.9, 1.0)))
        return run

    # -- what the guest says ----------------------------------------------------------------------------------------
    def found(self, found: dict[str, Any], restored: str, boot: str, seconds: float) -> str:
        """The guest has looked."""
        assert boot not in self._boots, "the guest takes itself for one that ran before"
        self._boots.add(boot)
        self._looking = seconds
        complete = {name: what["number"] for name, what in found.items() if isinstance(what, dict)}
        for name, number in self.kept.items():
            if complete.get(name) != number:
                self.counts["finished, lost"] += 1
                self.problems.append(f"checkpoint {number} was finished in {name}; now: {found}")
        for name, number in complete.items():
            if name not in self.kept and number not in self.in_flux.get(name, ()):
                self.problems.append(f"{name} is number {number}; it could be {self.in_flux.get(name)}")
            if found[name]["wrong"]:
                self.counts["restored, memory wrong"] += 1
                self.problems.append(f"{found[name]['wrong']} pages of checkpoint {number} are wrong")
            for how in ("written", "mapped"):  # the program goes on after a dump, so it may be newer
                if found[name][how] < number:
                    self.counts["restored, file older"] += 1
                    self.problems.append(f"{found[name][how]} is {how} in the file of checkpoint {number}")
        if complete and complete[restored] != max(complete.values()):
            self.problems.append(f"{restored} is not the newest of {complete}")
        self.counts["complete, restored"] += len(complete)
        self.counts["broken, recognised"] += len(found) - len(complete)
        self.counts["failures after which one was restored"] += bool(complete)
        self.kept = dict(complete)
        self.in_flux = {name: set() for name in found if name not in complete}
        broken = [f"{name}: {what}" for name, what in found.items() if name not in complete]
        return f"restored {sorted(complete.values())}, broken {broken}"

    def dumping(self, number: int, directory: str) -> None:
        self._number = number
        self.in_flux[directory] = {number, *([self.kept.pop(directory)] if directory in self.kept else [])}

    def dumped(self, number: int, directory: str) -> None:
        self.kept[directory] = number
        del self.in_flux[directory]

    def removing(self, directory: str) -> None:
        self.in_flux[directory] = {self.kept.pop(directory)}

    @property
    def looking(self) -> float:
        return self._looking


def report(counts: Counter[str], where: Counter[str], seconds: float) -> str:
    cpu, failures = counts.pop("QEMU's milliseconds") / 1000, counts["failures"]
    shown = ", ".join(f"{value} {key}" for key, value in counts.items())
    places = "\n".join(f"{where[phase]:6} {phase}" for phase in (LOOK, *PHASES))
    return f"{shown}; {seconds / failures:.1f} s and {cpu / failures:.1f} s of QEMU each\nthe power failed\n{places}"


class Run:
    """One resumed guest, until the power fails."""

    def __init__(
        self,
        series: Series,
        moment: Moment | None,
        usual: Usual,
        guest: Guest,
        volatile: VolatileDisk,
        told: dict[str, Any],
    ) -> None:
        self._series, self._moment, self.usual = series, moment, usual
        self._guest, self._disk = guest, volatile
        self.phase, self.said, self.dumped = LOOK, "nothing said", 0
        self.lost = self.of = 0
        self.cpu = 0.0
        self._cycle = 0
        self._since, self._requests, self._marks = time.monotonic(), 0, Counter[str]()
        self._directory = ""
        self._told: dict[str, Any] | None = told  # until it is told
        self._deadline: float | None = None

    def follow(self) -> None:
        heard = time.monotonic()
        killed = False
        while not self._guest.ended:
            now = time.monotonic()
            if now - heard > SILENCE:
                self._give_up("said nothing for too long")
            if self._deadline is not None and now >= self._deadline and not killed:
                self._guest.kill()
                killed = True
            lines = self._guest.read((self._deadline or now + 1) - now if not killed else 1)
            for line in lines:
                heard = now
                self._hear(line)

    def _give_up(self, what: str) -> None:
        raise VmError(f"the guest {what}; its console:\n" + "\n".join(self._guest.lines[-60:]))

    def _hear(self, line: str) -> None:
        mark, _, rest = line[line.find("@@") :].partition(" ") if "@@" in line else ("", "", "")
        if mark == "@@SAVE" and self._told:
            self._guest.send(json.dumps(self._told))
            self._since, self._told = time.monotonic(), None
            if self._moment and self._moment.kind == "early":
                self._deadline = self._since + self._moment.share * self._series.looking
        elif mark == "@@AT":
            self.phase = rest.partition("|")[0]
            self._marks[self.phase] += 1
        elif mark == "@@FOUND":
            facts = json.loads(rest)
            self.said = self._series.found(**facts, seconds=time.monotonic() - self._since)
            if self._moment is None:
                self._guest.kill()
        elif mark == "@@DUMPING":
            facts = json.loads(rest)
            self._directory = facts["directory"]
            self._series.dumping(**facts)
            self._begin()
        elif mark == "@@DUMPED":
            self.dumped += 1
            self._series.dumped(json.loads(rest)["number"], self._directory)
        elif mark == "@@REMOVING":
            self._series.removing(json.loads(rest)["directory"])
        elif mark == "@@PAUSED":
            assert self._moment
            self._deadline = time.monotonic() + self._moment.chance.uniform(0, 0.05)
        elif mark == "@@EXIT":
            self._give_up("ended by itself")

    def _begin(self) -> None:
        """Another checkpoint begins: arm what cuts the power in it."""
        now = time.monotonic()
        if self._cycle:
            self.usual.seconds = now - self._since
            self.usual.requests = self._disk.requests - self._requests
            self.usual.marks = self._marks
        self._since, self._requests, self._marks = now, self._disk.requests, Counter()
        self._cycle += 1
        moment = self._moment
        if moment is None or self._cycle <= moment.skip or self._deadline is not None:
            return
        if moment.kind == "time" or self._cycle > moment.skip + 1:  # what was to come in the last one did not
            self._deadline = now + moment.share * self.usual.seconds
        elif moment.kind == "request":
            self._disk.fail_at(1 + int(moment.share * self.usual.requests), self._guest.kill)
