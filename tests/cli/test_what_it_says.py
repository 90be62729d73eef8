# SPDX-License-Identifier: Apache-2.0
"""What people see of a dump and a restore that go well: a closing line, on request where the time went, and progress on
a terminal where it takes long."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.events import wait_end

from .conftest import SOURCE, Run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="freezing needs root")

SIZE = r"\d+(\.\d+)? (bytes|KiB|MiB)"
TIME = r"\d+(\.\d+)? m?s"
HOLDER = "import time; memory = bytearray(b'x' * (24 << 20)); print('ready', flush=True); time.sleep(1000)"
# The command, for somebody who is impatient, where the disk or the memory is slow.
IMPATIENT = """
import os, sys, time
from torpor import progress
from torpor.engine import process
progress.PATIENCE, progress.INTERVAL = 0, 0.05
process.TICK = 1
"""
SLOW_DISK = """
sync = os.fsync
def fsync(fd):
    time.sleep(0.02)
    sync(fd)
os.fsync = fsync
"""
SLOW_MEMORY = """
from torpor.memory import fill
check = fill.check_reads
def slowly(*words):
    time.sleep(0.2)
    check(*words)
fill.check_reads = slowly
"""
MAIN = """
from torpor.cli.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def victim(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process of its own session; the images go into tmp_path / "images"."""
    (tmp_path / "images").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def dump(torpor: Run, victim: "subprocess.Popen[str]", *more: str) -> str:
    done = torpor("dump", "-t", str(victim.pid), "-D", "images", "--manage-cgroups=ignore", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_closing_lines(torpor: Run, victim: "subprocess.Popen[str]", tmp_path: Path) -> None:
    line = rf"dumped 1 task, \d+ files, {SIZE} in {TIME} \(frozen {TIME}%s\) → images/\n"
    assert re.fullmatch(line % "", dump(torpor, victim, "-R"))
    assert re.fullmatch(line % rf", {TIME} of it for the disk", dump(torpor, victim))
    assert victim.wait(10) == -signal.SIGKILL
    assert {path.stat().st_mode & 0o7777 for path in (tmp_path / "images").iterdir()} == {0o600}
    done = torpor("restore", "-d", "-D", "images", "--manage-cgroups=ignore")
    assert re.fullmatch(rf"restored 1 task in {TIME} ← images/ \(root {victim.pid}\)\n", done.stdout), done.stderr
    os.kill(victim.pid, signal.SIGKILL)
    wait_end(victim.pid, 10)


def test_where_the_time_went(torpor: Run, victim: "subprocess.Popen[str]") -> None:
    """By phase, and by kind of object, the costliest first; then the closing line."""
    *lines, last = dump(torpor, victim, "-R", "--display-stats").splitlines()
    phases = [line.split()[0] for line in lines if re.fullmatch(rf"  [a-z ]+ +{TIME}", line)]
    assert phases[0] == "freeze" and {"gather", "cure", "write", "sync"} <= set(phases)
    kinds = [line for line in lines if "×" in line]
    assert len(kinds) + len(phases) == len(lines) and any(line.endswith(" × fd:device") for line in kinds)
    assert all(re.fullmatch(rf" +{TIME} +[\d,]+ × \S.*", line) for line in kinds)
    assert last.startswith("dumped 1 task")


def test_for_programs(torpor: Run, victim: "subprocess.Popen[str]") -> None:
    facts = json.loads(dump(torpor, victim, "--json"))
    assert (facts["tasks"], facts["threads"], facts["images"]) == (1, 1, "images")
    assert 0 < facts["frozen_seconds"] < facts["seconds"] and facts["bytes"] > 24 << 20
    assert victim.wait(10) == -signal.SIGKILL
    done = torpor("restore", "-d", "-D", "images", "--json", "--manage-cgroups=ignore")
    facts = json.loads(done.stdout)
    assert (facts["pid"], facts["tasks"], facts["images"]) == (victim.pid, 1, "images") and facts["seconds"] > 0
    os.kill(victim.pid, signal.SIGKILL)
    wait_end(victim.pid, 10)


def on_a_terminal(place: Path, patch: str, *words: str) -> tuple[str, str]:
    """What somebody who is impatient sees on a terminal, and the closing line."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT + patch + MAIN, *words, "-D", str(place / "images")],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "HOME": str(place)}, timeout=60,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    return shown, done.stdout.decode()


def test_progress(victim: "subprocess.Popen[str]", tmp_path: Path) -> None:
    shown, last = on_a_terminal(tmp_path, SLOW_DISK, "dump", "-t", str(victim.pid))
    assert re.search(rf"\rbringing the images to the disk: {TIME}", shown), shown
    assert shown.endswith("\r") and last.startswith("dumped 1 task")
    assert victim.wait(10) == -signal.SIGKILL
    shown, last = on_a_terminal(tmp_path, SLOW_MEMORY, "restore", "-d")
    found = re.findall(rf"\rreading memory: (\d+)\.\d MiB of (\d+)\.\d MiB, {SIZE}/s, {TIME} left", shown)
    assert found and 24 <= int(found[-1][0]) <= int(found[-1][1]) < 100, shown
    assert shown.endswith("\r") and last.startswith("restored 1 task")
    os.kill(victim.pid, signal.SIGKILL)
    wait_end(victim.pid, 10)
