# SPDX-License-Identifier: Apache-2.0
"""stats-dump tells the frozen time that the dump itself tells, whether the tree goes on or ends."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

import torpor
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
