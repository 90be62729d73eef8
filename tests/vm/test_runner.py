# SPDX-License-Identifier: Apache-2.0
"""Cases that are run together, without a guest: guest/runner.py with a module that is made up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parent / "guest/runner.py"
MODULE = """
import sys

def one(name):
    print("alone:", name)
    if name in {broken!r}:
        raise SystemExit(1)

def together(names):
    print("together:", names)
    if {spoilt!r} in names:
        raise ValueError("spoilt")
    return {{name: ("skipped" if name == "b" else "passed", "with others") for name in names}}

CASES = {{name: (lambda name=name: one(name)) for name in "abcd"}}
GROUPS = lambda names: [names[:1], names[1:]]
TOGETHER = together
"""


def results(tmp_path: Path, broken: str, spoilt: str) -> tuple[dict[str, tuple[str, str]], str]:
    (tmp_path / "made.py").write_text(MODULE.format(broken=broken, spoilt=spoilt))
    environment = dict(os.environ, PYTHONPATH=str(tmp_path))
    done = subprocess.run(
        [sys.executable, RUNNER, "made"], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("@@RESULT "):
            result = json.loads(line.removeprefix("@@RESULT "))
            assert result["case"] not in found
            found[result["case"]] = result["outcome"], result["output"]
    return found, done.stdout


def test_each_of_a_group_has_its_outcome(tmp_path: Path) -> None:
    found, _ = results(tmp_path, "", "nobody")
    assert found == {
        "a": ("passed", "alone: a\n"),
        "b": ("skipped", "with others"),
        "c": ("passed", "with others"),
        "d": ("passed", "with others"),
    }


def test_a_group_that_fails_is_run_again_one_by_one(tmp_path: Path) -> None:
    found, said = results(tmp_path, "c", "c")
    assert [found[name][0] for name in "abcd"] == ["passed", "passed", "failed", "passed"]
    assert "failed together: b, c, d" in said and "ValueError: spoilt" in said


@pytest.mark.parametrize("spoilt", "bd")
def test_what_fails_only_together_fails(tmp_path: Path, spoilt: str) -> None:
    found, _ = results(tmp_path, "", spoilt)
    assert [found[name][0] for name in "abcd"] == ["passed", "passed", "passed", "failed"]
    assert "each passes alone; together ['b', 'c', 'd']" in found["d"][1] and "ValueError: spoilt" in found["d"][1]
