# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of ``torpor restore``, of the front, of the engine, of both: nothing of the tree is left, or all of it
runs.

At moments that a clock chooses, and before every single thing that the engine does to a task.  TORPOR_RESTORE_KILLS=100
sets the number of the first, TORPOR_STEPS=all visits all of the second.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from faults.steps import some
from faults.trees import Checkpoint, count
from faults.victim import SETTLE_S, Command
from harness.events import Nursery, children_of

KILLS = int(os.environ.get("TORPOR_RESTORE_KILLS", "24"))
WHO = ("front", "engine", "both")
LETTING_GO = 45  # steps, at the end of a restore: the tree has 14 threads
KILL = f"{signal.SIGKILL:d}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    yield Checkpoint(tmp_path_factory.mktemp("tree"), 4)


def measure(checkpoint: Checkpoint) -> tuple[float, float]:
    """Seconds from the command's start to the root's birth, and from there to the command's end."""
    found = []
    for _ in range(3):
        started = time.monotonic()
        command = checkpoint.command()
        born = birth(checkpoint, command)
        assert command.wait() == 0, command.text
        found.append((born - started, time.monotonic() - born))
        assert checkpoint.outcome() == "all"
        checkpoint.end()
    return sorted(found)[1]


def birth(checkpoint: Checkpoint, command: Command) -> float:
    """The moment at which the root is there; looked at without a pause, for nothing tells."""
    command.wait_for_engine()
    while not os.path.exists(f"/proc/{checkpoint.root}") and command.process.poll() is None:
        pass
    return time.monotonic()


def kill(command: Command, who: str, dice: random.Random) -> None:
    engine = next(iter(children_of(command.pid)), 0)
    both = dice.sample([command.pid, engine], 2)
    for pid in {"front": [command.pid], "engine": [engine], "both": both}[who]:
        try:
            if pid:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_kill_at_any_moment(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("TORPOR_SEED", "0")) or random.randrange(1 << 32)
    dice = random.Random(seed)
    outcomes: Counter[tuple[str, str, str]] = Counter()
    wrong: list[str] = []
    before, after = measure(checkpoint)
    for number in range(KILLS):
        who = WHO[number % 3]
        inside = number % 4 != 3
        with Nursery(SETTLE_S):
            command = checkpoint.command()
            started = time.monotonic()
            if inside:
                moment = birth(checkpoint, command) + dice.uniform(0, after)
            else:
                moment = started + dice.uniform(0, before)
            while time.monotonic() < moment:
                pass
            kill(command, who, dice)
            command.process.wait(60)
            outcome = checkpoint.outcome()
            outcomes[who, "while the tree is made" if inside else "before", outcome] += 1
            if outcome not in ("nothing", "all"):
                wrong.append(f"kill {number} of {who}: {outcome}")
            checkpoint.end()
    with capsys.disabled():
        print(f"\n{KILLS} kills of a restore (seed {seed}), which takes {before * 1e3:.0f} + {after * 1e3:.0f} ms")
        for (who, where, outcome), times in sorted(outcomes.items()):
            print(f"  {times:4} × {who}, {where}: {outcome} is left")
        print(f"  {KILLS - len(wrong)} of {KILLS}: nothing, or all of it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("deeds", [f"engine:{KILL}", f"front:{KILL}", f"front:{KILL},engine:{KILL}"], ids=WHO)
def test_die_before_any_step(checkpoint: Checkpoint, deeds: str) -> None:
    """Both: not while it lets go, when the front must see what became of the engine (50 µs in which two have to be
    killed; test_die_while_it_lets_go has one of them killed there)."""
    wrong = []
    steps = count(checkpoint)
    for step in [1, *some(steps - LETTING_GO if "," in deeds else steps, 8)]:  # 1: nobody would end its first child
        with Nursery(SETTLE_S):
            checkpoint.meddled(step, deeds)
            outcome = checkpoint.outcome()
            if outcome not in ("nothing", "all"):
                wrong.append(f"step {step} of {steps}: {outcome}")
            checkpoint.end()
    assert not wrong, "\n".join(wrong)


def test_die_while_it_lets_go(checkpoint: Checkpoint) -> None:
    """The last steps, in which the tree stops ending with the engine, and begins to run: every second of them."""
    steps = count(checkpoint)
    outcomes: Counter[str] = Counter()
    for step in range(steps - LETTING_GO + random.randrange(2), steps + 1, 2):
        with Nursery(SETTLE_S):
            checkpoint.meddled(step, f"engine:{KILL}")
            outcomes[checkpoint.outcome()] += 1
            checkpoint.end()
    assert set(outcomes) <= {"nothing", "all"}, outcomes
    assert len(outcomes) == 2, outcomes
