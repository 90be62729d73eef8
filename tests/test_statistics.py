# SPDX-License-Identifier: Apache-2.0
"""stats-dump tells the frozen time that the dump itself tells, whether the tree goes on or ends; stats-restore how many
pages came back, and how."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import torpor
from harness.events import Nursery, tree_of
from torpor.images.directory import ImageReader
from torpor.images.kinds import STATS


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("goes_on", [True, False], ids=["goes-on", "ends"])
def test_frozen_time(goes_on: bool, tmp_path: Path) -> None:
    victim = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        result = torpor.dump(victim.pid, tmp_path, leave_running=goes_on)
        with ImageReader.open(str(tmp_path)) as images:
            stats = images.one(STATS, "dump").dump
        assert stats is not None
        assert abs(stats.frozen_time / 1e6 - result.frozen_seconds) < 1e-5
        assert 0 < stats.freezing_time <= stats.frozen_time
        if goes_on:
            assert victim.poll() is None
        else:
            assert victim.wait(10) == -signal.SIGKILL
    finally:
        victim.kill()
        victim.wait()


FAMILY = """
import mmap, os, time
memory = mmap.mmap(-1, 2048 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(2048):
    memory[page * 4096] = 1
child = os.fork()
if child == 0:
    for page in range(1024):
        memory[page * 4096] = 2
    print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_pages_restored(tmp_path: Path) -> None:
    """A child shares half of its parent's 2,048 pages: they are compared, and read once."""
    root = subprocess.Popen(
        [sys.executable, "-c", FAMILY], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert root.stdout and root.stdout.readline() == b"ready\n"
    root.stdout.close()
    with Nursery() as nursery:
        torpor.dump(root.pid, tmp_path)
        root.wait()
        nursery.sweep(nursery.grace)  # its child is ours now
        restored = torpor.restore(tmp_path)
        for pid in reversed(tree_of(restored.pid)):
            os.kill(pid, signal.SIGKILL)
    with ImageReader.open(str(tmp_path)) as images:
        stats, dumped = images.one(STATS, "restore").restore, images.one(STATS, "dump").dump
    assert stats is not None and dumped is not None and stats.pages_restored is not None
    assert stats.pages_compared >= 2048
    assert 1024 <= stats.pages_skipped_cow <= stats.pages_compared - 1024
    # All but those of the vDSOs, which the kernel brings.
    assert 0 <= dumped.pages_written - stats.pages_restored - stats.pages_skipped_cow <= 2 * 8
