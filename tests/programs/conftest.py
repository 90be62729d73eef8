# SPDX-License-Identifier: Apache-2.0
"""The tools as a parameter of every test of a real program; nothing is left behind; what was not tested is counted."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import peer
from harness.events import Nursery
from harness.tools import TORPOR, Tool

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))  # the Redis client is the demo's

from support import Checkpoint

# DUMPER-RESTORER, separated by commas; "criu-criu" runs without Torpor. Each test runs in both ways: the dump ends the
# original; and with --leave-stopped, where /proc is compared before and after.
PAIRS = os.environ.get("TORPOR_PROGRAM_TOOLS", "torpor-torpor").split(",")
FAILED = pytest.StashKey[bool]()


def tool(name: str) -> Tool:
    if name == "torpor":
        return TORPOR
    if name != "criu":
        raise ValueError(f"TORPOR_PROGRAM_TOOLS: no tool {name!r}; there are torpor and criu")
    command, why = peer.criu()
    if command is None:
        pytest.skip(f"no peer: {why}")
    return Tool("criu", [str(command)])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_way: the test dumps in its own way, so there is nothing to compare")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "checkpoint" in metafunc.fixturenames:
        ways = [""] if metafunc.definition.get_closest_marker("one_way") else ["", "-compared"]
        metafunc.parametrize("checkpoint", [pair + way for pair in PAIRS for way in ways], indirect=True)


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Checkpoint]:
    """The two tools; whatever the test has started has ended when it is over, or it fails."""
    dumper, restorer, *way = request.param.split("-")
    tools = tool(dumper), tool(restorer)
    tmp_path.chmod(0o755)  # for programs that become another user
    nursery = Nursery()
    with nursery:
        with ExitStack() as at_end:
            yield Checkpoint(tools, way == ["compared"], tmp_path, at_end)
        if request.node.stash.get(FAILED, False):  # then what is left is no news
            nursery.sweep(0)
            nursery.left.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Programs by outcome, and the packages without which some were not tested."""
    counts: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if "/programs/" not in report.nodeid and not report.nodeid.startswith("programs/"):
                continue
            counts[outcome] += 1
            found = re.search(r"apt-get install ([a-z0-9.+-]+)", str(report.longrepr)) if outcome == "skipped" else None
            if found:
                missing[found[1]] += 1
    if counts:
        terminalreporter.section("real programs")
        terminalreporter.write_line(", ".join(f"{number} {outcome}" for outcome, number in counts.items()))
        for package, number in missing.items():
            terminalreporter.write_line(f"{number} not tested for want of the Debian package {package}")
