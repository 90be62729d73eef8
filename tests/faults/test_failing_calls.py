# SPDX-License-Identifier: Apache-2.0
"""Any system call of a program that runs inside a task fails, as if the kernel did not know it (ENOSYS).

A dump is whole without it, or fails: then it says which call of which task it was, and the victim is as it was.  After
a restore all of the tree runs, or nothing is left of it.  TORPOR_FAILING=150 sets how many of each are tried (make
test-hard), TORPOR_STEPS=all has each call of all fail.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.steps import count, meddled, some
from faults.trees import Checkpoint
from faults.trees import count as count_restore
from faults.victim import SETTLE_S, Victim
from harness.events import Nursery

FAILING = int(os.environ.get("TORPOR_FAILING", "24"))


def in_words(text: str) -> bool:
    return "a bug" not in text and "Traceback" not in text


def test_of_a_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: Counter[int] = Counter()
    wrong = []
    victim = Victim.of(1)
    try:
        calls = count(victim, tmp_path, "call")
        for number in some(calls, FAILING):
            code, text = meddled(number, "call", victim, tmp_path, "-R")
            outcomes[code] += 1
            if not in_words(text):
                wrong.append(f"call {number} of {calls}: {text}")
            if harm := victim.harm("signals"):
                wrong.append(f"call {number} of {calls}: {'; '.join(harm)}")
                victim.end()
                victim = Victim.of(1)
    finally:
        victim.end()
    with capsys.disabled():
        print(f"\n{outcomes[0]} dumps did without a call, {outcomes[1]} failed, of {calls} calls in each")
    assert not wrong, "\n".join(wrong)
    assert set(outcomes) == {0, 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    yield Checkpoint(tmp_path_factory.mktemp("tree"))


def test_of_a_restore(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: Counter[str] = Counter()
    wrong = []
    calls = count_restore(checkpoint, "call")
    for number in some(calls, FAILING):
        with Nursery(SETTLE_S):
            code, text = checkpoint.meddled(number, "call")
            outcome = checkpoint.outcome()
            outcomes[outcome] += 1
            if not in_words(text) or outcome != ("nothing" if code else "all"):
                wrong.append(f"call {number} of {calls}: {code}, {outcome}: {text}")
            if code:
                wrong += [f"call {number} of {calls}: {one}" for one in checkpoint.left()]
            checkpoint.end()
    with capsys.disabled():
        print(f"\n{outcomes['all']} restores did without a call, {outcomes['nothing']} were undone, of {calls} calls")
    assert not wrong, "\n".join(wrong)
    assert outcomes["nothing"]
