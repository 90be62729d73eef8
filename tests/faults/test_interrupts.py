# SPDX-License-Identifier: Apache-2.0
"""SIGINT, SIGTERM and SIGHUP at any moment of a dump: one sentence, a status that is not 0, the victim unharmed, and
no images that look like a dump; or, where the signal comes too late, a whole one."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.steps import count, meddled, some
from faults.trees import Checkpoint
from faults.trees import count as steps_of_restore
from faults.victim import SETTLE_S, Command, Victim
from harness.events import Nursery, tree_of


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim.of(4) as running:
        yield running


def checked(victim: Victim, images: Path, code: int, text: str, what: str) -> bool:
    """Whether the dump was given up: then nothing has happened."""
    assert "a bug" not in text and "Traceback" not in text, f"{what}: {text}"
    assert (images / "inventory.img").exists() == (code == 0), f"{what}: {code}, {text}"
    if code:
        assert code == 1 and text.startswith("torpor: interrupted") and "\n" not in text, f"{what}: {code}, {text}"
        assert list(images.iterdir()) == [], f"{what}: half a dump was left"
    assert victim.harm("signals") == [], what
    for path in images.iterdir():
        path.unlink()
    return bool(code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_at_any_step(victim: Victim, tmp_path: Path, number: signal.Signals) -> None:
    steps = count(victim, tmp_path)
    given_up = 0
    for path in tmp_path.iterdir():
        path.unlink()
    for whom in ("front", "engine"):
        for step in some(steps, 5):
            code, text = meddled(step, f"{whom}:{number:d}", victim, tmp_path, "-R")
            given_up += checked(victim, tmp_path, code, text, f"{number.name} to the {whom} at step {step}")
    assert given_up


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_of_a_dump_that_ends_it(victim: Victim, tmp_path: Path, number: signal.Signals) -> None:
    """Without -R: either the victim is unharmed, or it is dumped as a whole and has ended."""
    steps, given_up = count(victim, tmp_path), 0
    for whom in ("front", "engine"):
        for step in some(steps, 3):
            for path in tmp_path.iterdir():
                path.unlink()
            what = f"{number.name} to the {whom} at step {step}"
            with Victim.of(1) as ended:
                code, text = meddled(step, f"{whom}:{number:d}", ended, tmp_path)
                if code:
                    given_up += checked(ended, tmp_path, code, text, what)
                else:
                    assert (tmp_path / "inventory.img").exists(), what
                    assert ended.process.wait(10) == -signal.SIGKILL, what
    assert given_up


def test_ctrl_c(victim: Victim, tmp_path: Path) -> None:
    """The terminal sends it to the whole foreground group: front and engine, at any moment after the start."""
    given_up = 0
    for number in range(8):
        with Nursery(SETTLE_S):
            command = Command.dump(victim.pid, tmp_path, "-R")
            time.sleep(random.uniform(0.0, 0.45))
            if command.process.poll() is None:
                press_ctrl_c(command)
            code = command.wait()
        if code == -signal.SIGINT or (code == 1 and "KeyboardInterrupt" in command.text):
            # Python itself was coming up, before anything was touched, or on its way out, after all was done.
            assert (tmp_path / "inventory.img").exists() or not list(tmp_path.iterdir())
            assert victim.harm() == []
            for path in tmp_path.iterdir():
                path.unlink()
            continue
        given_up += checked(victim, tmp_path, code, command.text, f"interrupt {number}")


def press_ctrl_c(command: Command) -> None:
    """To front and engine; they may have ended by themselves."""
    try:
        os.killpg(command.pid, signal.SIGINT)
    except ProcessLookupError:
        pass


def test_twice(victim: Victim, tmp_path: Path) -> None:
    """Impatience: a second Ctrl-C while the first is being obeyed changes nothing."""
    for _ in range(4):
        with Nursery(SETTLE_S):
            command = Command.dump(victim.pid, tmp_path, "-R")
            while command.process.poll() is None and len(tree_of(command.pid)) < 3:
                time.sleep(0.001)
            for _ in range(5):
                if command.process.poll() is None:
                    press_ctrl_c(command)
                time.sleep(0.002)
            code = command.wait()
        checked(victim, tmp_path, code, command.text, "again and again")


def test_suspended_and_continued(victim: Victim, tmp_path: Path) -> None:
    """Ctrl-Z and fg: the tree stands still meanwhile, and all goes on."""
    with Nursery(SETTLE_S):
        command = Command.dump(victim.pid, tmp_path, "-R")
        while command.process.poll() is None and len(tree_of(command.pid)) < 3:
            time.sleep(0.001)
        os.killpg(command.pid, signal.SIGSTOP)
        time.sleep(0.2)
        os.killpg(command.pid, signal.SIGCONT)
        code = command.wait()
    assert code == 0, command.text
    assert victim.harm("signals") == []


# -- restore ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    yield Checkpoint(tmp_path_factory.mktemp("tree"))


def undone(checkpoint: Checkpoint, code: int, text: str, what: str) -> bool:
    """Whether the restore was given up: undone completely then."""
    assert "a bug" not in text and "Traceback" not in text, f"{what}: {text}"
    outcome = checkpoint.outcome()
    assert outcome == ("nothing" if code else "all"), f"{what}: status {code}, {outcome} is left; {text}"
    if code:
        assert code == 1 and text.startswith("torpor: interrupted") and "\n" not in text, f"{what}: {text}"
        assert checkpoint.left() == [], what
    checkpoint.end()
    assert checkpoint.left() == [], what
    return bool(code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_restore_at_any_step(checkpoint: Checkpoint, number: signal.Signals) -> None:
    steps = steps_of_restore(checkpoint)
    given_up = 0
    for whom in ("front", "engine"):
        for step in some(steps, 5):
            with Nursery(SETTLE_S):
                code, text = checkpoint.meddled(step, f"{whom}:{number:d}")
                words = "\n".join(line for line in text.splitlines() if not line.startswith("steps "))
                given_up += undone(checkpoint, code, words, f"{number.name} to the {whom} at step {step} of {steps}")
    assert given_up


def test_restore_ctrl_c(checkpoint: Checkpoint) -> None:
    """Again and again, to front and engine, as soon as the root is there."""
    given_up = 0
    for _ in range(4):
        with Nursery(SETTLE_S):
            command = checkpoint.command()
            while not os.path.exists(f"/proc/{checkpoint.root}") and command.process.poll() is None:
                pass
            for _ in range(3):
                press_ctrl_c(command)
                time.sleep(0.002)
            code = command.wait()
            given_up += undone(checkpoint, code, command.text, "again and again")
    assert given_up
