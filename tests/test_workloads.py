# SPDX-License-Identifier: Apache-2.0
"""Every workload in every mode: test_workloads.py::test_workload[NAME-MODE].

TORPOR_MODES=restore,from-criu pytest -k mem_   chooses modes and workloads.

Torpor's command is a fork of this process, which spares most of its processor time (harness/warm.py); in the mode
`restore` it imports all anew that it needs, as it does when a user starts it (which test_crowds.py does with most
workloads, and tests/cli).
"""

import gc
import os
from pathlib import Path

import pytest

import peer
from harness import warm
from harness.failures import excuse
from harness.modes import MODES, Mode, run_case, selected
from harness.tools import TORPOR_FRESH, TORPOR_WARM, Tool
from harness.workload import Skipped, Workload, all_workloads

_oracle: dict[str, AssertionError | None] = {}


def tools_for(mode: Mode) -> dict[str, Tool]:
    tools = {"torpor": TORPOR_FRESH if mode is MODES["restore"] else TORPOR_WARM}
    if "criu" in (mode.dumper, mode.restorer):
        command, why = peer.criu()
        if command is None:
            pytest.skip(f"no peer: {why}")
        tools["criu"] = Tool("criu", [str(command)])
    return tools


def criu_fails(workload: Workload, directory: Path) -> AssertionError | None:
    """How CRIU itself, dumping and restoring, fails on this workload; None where it does not, in three attempts: what
    its tasks do at the same time (connecting to one listener, say) comes out as it happens."""
    if workload.name not in _oracle:
        mode = MODES["criu"]
        _oracle[workload.name] = None
        for attempt in range(3):
            try:
                run_case(workload, mode, tools_for(mode), directory / str(attempt))
            except AssertionError as error:
                _oracle[workload.name] = error
                break
    return _oracle[workload.name]


@pytest.fixture(scope="module")
def _warm() -> None:
    warm.import_all()
    gc.collect()
    gc.freeze()  # what is there now is not walked over, hence not copied, in each fork


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.usefixtures("_warm")
@pytest.mark.parametrize("mode_name", selected())
@pytest.mark.parametrize("workload", all_workloads(), ids=lambda workload: workload.name)
def test_workload(workload: Workload, mode_name: str, tmp_path: Path) -> None:
    mode = MODES[mode_name]
    tools = tools_for(mode)
    tmp_path.chmod(0o755)  # for workloads that become another user
    try:
        run_case(workload, mode, tools, tmp_path / "case")
    except Skipped as why:
        pytest.skip(f"cannot run here: {why}")
    except AssertionError as error:
        if not mode.excused:
            raise
        criu = criu_fails(workload, tmp_path / "oracle")
        if criu is not None and (why := excuse(criu, error, mode.dumper, mode.restorer)):
            pytest.xfail(why)
        raise
