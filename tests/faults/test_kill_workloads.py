# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of the engine in the middle of dumps of some workloads (mode `killed` of tests/harness/modes.py): those
that are about what the guardian could break."""

import os
from pathlib import Path

import pytest

from harness import killing, warm
from harness.modes import KILLED, MODES, run_case
from harness.tools import TORPOR_WARM
from harness.workload import DIRECTORY, Workload

if os.geteuid():
    pytest.skip("tracing needs root", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm.import_all()


def run(name: str, directory: Path) -> None:
    directory.chmod(0o755)
    run_case(Workload(DIRECTORY / name), MODES["killed"], {"torpor": TORPOR_WARM}, directory / "case")


@pytest.mark.parametrize("name", KILLED)
def test_goes_on(name: str, tmp_path: Path) -> None:
    run(f"{name}.py" if name.startswith("py_") else f"{name}.c", tmp_path)


def test_stays_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engine has been told of a stop by job control, and nothing shows it any more."""
    monkeypatch.setattr(killing, "some", lambda steps: range(1, 24))
    run("tree_stop_unseen.c", tmp_path)
