# SPDX-License-Identifier: Apache-2.0
"""Session-wide settings: the test process reaps restored trees, and the summary counts by mode."""

import compileall
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from harness.events import become_subreaper
from harness.modes import selected

become_subreaper()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: all victims would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    try:
        selected()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_sessionstart() -> None:
    """Byte code for Torpor, as whoever installs it has it: where Python is told to write none, every command of a test
    would compile all that it imports, which is most of its processor time."""
    compileall.compile_dir(str(Path(__file__).resolve().parent.parent / "src"), quiet=2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Cases by mode; what CRIU itself cannot do counted apart, with its words; what was not run and why."""
    counts: Counter[tuple[str, str]] = Counter()
    reasons: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error", "xfailed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            found = re.search(r"test_workload\[(\w+)-([\w-]+)\]", report.nodeid)
            if not found:
                continue
            counts[found[2], outcome] += 1
            if outcome == "xfailed":
                reasons[f"{found[1]}: {report.wasxfail.removeprefix('reason: ')}"] += 1
            elif outcome == "skipped":
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                who = "" if "no peer" in reason else f"{found[1]}: "
                reasons[who + reason.removeprefix("Skipped: ")] += 1
    if not counts:
        return
    terminalreporter.section("workloads by mode")
    for mode in dict.fromkeys(mode for mode, _ in counts):
        words = [f"{counts[mode, outcome]} {name}" for outcome, name in OUTCOMES.items() if counts[mode, outcome]]
        terminalreporter.write_line(f"{mode:>20}: {', '.join(words)}")
    for reason, number in sorted(reasons.items()):
        terminalreporter.write_line(f"{number:>4} × {reason}")


OUTCOMES = {
    "passed": "passed",
    "failed": "FAILED",
    "error": "in error",
    "xfailed": "where CRIU fails too",
    "skipped": "not run",
}
