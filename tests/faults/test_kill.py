# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of ``torpor dump --leave-running``, of the front, of the engine, of both: the victim is as it was.

At moments that a clock chooses, most of them inside the frozen window, and before every single thing that the engine
does to a task.  TORPOR_KILLS=200 sets the number of the first (make test-hard), TORPOR_STEPS=all visits all of the
second.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from faults.steps import count, meddled, some
from faults.victim import SETTLE_S, Command, Victim, status, tracer
from harness.events import Nursery

KILLS = int(os.environ.get("TORPOR_KILLS", "32"))
MEGABYTES = 32
ALLOWED = 1  # victims lost of 200; none of fewer
WHO = ("front", "engine", "both")


class Window(NamedTuple):
    """Seconds from the command's start to the freeze, from there to the thaw, from there to the command's end."""

    before: float
    frozen: float
    after: float


class Death(NamedTuple):
    who: str
    inside: bool  # traced when the signal was sent
    stopped: bool  # and in a ptrace stop


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def _frozen_at(victim: Victim, command: Command) -> float:
    """The moment at which the victim is traced; looked at without a pause, for nothing tells."""
    command.wait_for_engine()
    while not tracer(victim.pid):
        if command.process.poll() is not None:
            return time.monotonic()
    return time.monotonic()


def measure(victim: Victim, images: Path) -> Window:
    windows = []
    for _ in range(3):
        started = time.monotonic()
        command = Command.dump(victim.pid, images, "--leave-running")
        frozen = _frozen_at(victim, command)
        while tracer(victim.pid):
            pass
        thawed = time.monotonic()
        assert command.wait() == 0, command.text
        windows.append(Window(frozen - started, thawed - frozen, time.monotonic() - thawed))
        assert victim.harm() == []
    return sorted(windows, key=lambda window: window.frozen)[1]


def _kill(victim: Victim, command: Command, who: str, dice: random.Random) -> Death:
    engine = tracer(victim.pid) or command.engine
    targets = {"front": [command.pid], "engine": [engine], "both": dice.sample([command.pid, engine], 2)}[who]
    seen = tracer(victim.pid)
    stopped = status(victim.pid, "State").startswith("t")
    for pid in targets:
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    return Death(who, bool(seen), stopped)


def _die(victim: Victim, images: Path, window: Window, who: str, inside: bool, dice: random.Random) -> Death | None:
    """One dump, killed at one moment; None: it was to be inside the window, but came too late."""
    with Nursery(SETTLE_S):
        command = Command.dump(victim.pid, images, "--leave-running")
        started = time.monotonic()
        if inside:
            moment = _frozen_at(victim, command) + dice.uniform(0, window.frozen)
        elif dice.random() < 0.5:
            moment = started + dice.uniform(0, window.before)
        else:
            moment = _frozen_at(victim, command) + window.frozen + dice.uniform(0, window.after)
        while time.monotonic() < moment:
            pass
        if inside and not tracer(victim.pid):
            command.wait()
            return None
        death = _kill(victim, command, who, dice)
        command.process.wait(60)
    return death


def test_kill_at_any_moment(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("TORPOR_SEED", "0")) or random.randrange(1 << 32)
    dice = random.Random(seed)
    deaths: Counter[Death] = Counter()
    lost: list[str] = []
    victim = Victim.of(MEGABYTES)
    restarts = inside = number = 0
    try:
        window = measure(victim, images)
        while number < KILLS or inside * 4 < number * 3:
            while not (death := _die(victim, images, window, WHO[number % 3], inside * 4 < (number + 1) * 3, dice)):
                pass
            number += 1
            inside += death.inside
            deaths[death] += 1
            harm = victim.harm("signals")
            if harm:
                lost.append(f"kill {number}: {death}: {'; '.join(harm)}")
                victim.end()
                victim = Victim.of(MEGABYTES)
        restarts = int(victim.ask("check").split()[-1])
    finally:
        victim.end()
    with capsys.disabled():
        print(
            f"\n{number} kills (seed {seed}), the frozen window being {window.frozen * 1000:.0f} ms: {inside} inside it"
        )
        for death, count in sorted(deaths.items()):
            where = ("in a stop" if death.stopped else "running our calls") if death.inside else "outside"
            print(f"  {count:4} × {death.who}, {where}")
        print(f"  {number - len(lost)} of {number} victims as before; {restarts} system calls not restarted")
        print(*(f"  {line}\n" for line in lost), sep="", end="")
    assert len(lost) <= number // 200 * ALLOWED, "\n".join(lost)


def test_die_before_any_step(images: Path) -> None:
    """The journal's test: whatever has been done to a task when the engine dies, the guardian knows how to undo it."""
    lost = []
    victim = Victim.of(1)
    try:
        steps = count(victim, images)
        for step in some(steps, 32):
            meddled(step, f"engine:{signal.SIGKILL:d}", victim, images, "-R")
            if harm := victim.harm("signals"):
                lost.append(f"step {step} of {steps}: {'; '.join(harm)}")
                victim.end()
                victim = Victim.of(1)
        restarts = victim.ask("check")
        assert restarts == "ok restarts 0", "a system call was not restarted, where the kernel would have"
    finally:
        victim.end()
    assert not lost, "\n".join(lost)
