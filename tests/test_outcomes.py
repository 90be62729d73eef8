# SPDX-License-Identifier: Apache-2.0
"""tools/outcomes.py, on reports that pytest itself writes: which runs count as good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def counted(tmp_path: Path, body: str, *flags: str) -> tuple[int, list[str]]:
    """Exit status and lines of outcomes.py for a module of tests with this body."""
    (tmp_path / "test_some.py").write_text(f"import pytest\n{body}")
    report = tmp_path / "report"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path), "-p",
               "no:cacheprovider", f"--junit-xml={report}", str(tmp_path / "test_some.py")]  # fmt: skip
    subprocess.run(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    command = [sys.executable, str(ROOT / "tools/outcomes.py"), *flags, str(report)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout.splitlines()


GOOD = "def test_good(): pass\n"


def skips(why: str) -> str:
    return f"{GOOD}def test_other(): pytest.skip({why!r})\n"


@pytest.mark.parametrize(
    "why",
    [
        "not installed: apt-get install nginx-light",
        "cannot run here: no C compiler: install gcc",
        "no peer: tests/peer-criu cannot set up CRIU here: the packages hold no criu",
    ],
)
def test_a_missing_program(tmp_path: Path, why: str) -> None:
    assert counted(tmp_path, skips(why)) == (0, ["1 passed, 0 failed, 1 skipped"])
    status, lines = counted(tmp_path, skips(why), "--installed")
    assert status == 1
    assert why in lines[0] and "test_other" in lines[0]
    assert lines[-1] == "1 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize(
    "why",
    [
        "cannot run here: no MAP_DROPPABLE: Invalid argument",
        "no peer: TORPOR_PEER=no",
        "no compiler for s390x: tools/setup vm installs it (gcc-s390x-linux-gnu)",
    ],
)
def test_another_reason(tmp_path: Path, why: str) -> None:
    assert counted(tmp_path, skips(why), "--installed") == (0, ["1 passed, 0 failed, 1 skipped"])


def test_expected_failures_are_no_missing_programs(tmp_path: Path) -> None:
    body = GOOD + "def test_other(): pytest.xfail('CRIU fails so, too: apt-get install')\n"
    assert counted(tmp_path, body, "--installed") == (0, ["1 passed, 0 failed, 1 skipped"])


def test_failures(tmp_path: Path) -> None:
    status, lines = counted(tmp_path, GOOD + "def test_bad(): assert 0\n")
    assert (status, lines) == (1, ["failed: test_some::test_bad", "1 passed, 1 failed, 0 skipped"])
    assert counted(tmp_path, "def test_other(): pytest.skip('no')\n") == (1, ["0 passed, 0 failed, 1 skipped"])


def test_a_second_try_and_another_report(tmp_path: Path) -> None:
    first, second, other = tmp_path / "tests", tmp_path / "tests.again", tmp_path / "guests"
    for path, name, inner in ((first, "b", '<failure message="x"/>'), (second, "b", ""), (other, "c", "")):
        case = f'<testcase classname="a" name="{name}">{inner}</testcase>'
        path.write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    command = [sys.executable, str(ROOT / "tools/outcomes.py"), str(first), str(other)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["passed only at the second try: a::b", "2 passed, 0 failed, 0 skipped"]


def test_no_report(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/outcomes.py"), str(tmp_path / "none")]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 1
