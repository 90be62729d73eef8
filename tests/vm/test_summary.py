# SPDX-License-Identifier: Apache-2.0
"""What a run says at its end, without a guest: vmlab/summary.py, and the table that tools/guests.py writes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from vmlab.summary import said

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import guests


def test_what_tests_say_is_read_when_they_pass_too() -> None:
    power = SimpleNamespace(
        nodeid="tests/vm/test_power.py::test_power", user_properties=[("said", "20 failures\n2 here")]
    )
    other = SimpleNamespace(nodeid="tests/vm/test_update.py::test_update[arm-there]", user_properties=[("seconds", 3)])
    assert list(said([power, other])) == ["power: 20 failures", "power: 2 here"]


@pytest.mark.parametrize(
    ("outcome", "output", "mark", "why"),
    [
        ("passed", "", "+", ""),
        ("passed", "refused: it has a memory policy\n\n", "r", "it has a memory policy"),
        ("skipped", "cannot run here: no mseal\n", "-", "no mseal"),
        # Where it cannot be had, the words in which it is refused elsewhere explain nothing.
        ("skipped", "refused: data stream control\ncannot run here: only ppc64le has it\n", "-", "only ppc64le has it"),
        ("failed", "refused: data stream control\nAssertionError\n", "F", ""),
    ],
)
def test_each_sign_of_the_table_has_its_own_reason(outcome: str, output: str, mark: str, why: str) -> None:
    result = {"outcome": outcome, "output": output}
    assert (guests.mark_of(result), guests.why(result)) == (mark, why)
