# SPDX-License-Identifier: Apache-2.0
"""`make demo`, which is what people try first: all of it comes out as it says, and nothing of it is left."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import program

from harness.events import Nursery

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_demo(tmp_path: Path) -> None:
    program("redis-server", "redis-server")
    with Nursery():
        done = subprocess.run(
            [sys.executable, ROOT / "tools/demo.py"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"dumped 1 task, .* \(frozen .*\) → ", done.stdout)
    found = re.search(r"all ([\d,]+) acknowledged writes are there: ([\d,]+) from before the dump, ([\d,]+) since",
                      done.stdout)  # fmt: skip
    assert found, done.stdout
    before, since = (int(number.replace(",", "")) for number in found.groups()[1:])
    assert before >= 2000 and since >= 2000
    assert "so are the 100,000 keys" in done.stdout
    for name, unit in (("images", "MB"), ("frozen", "m?s"), ("dump command", "m?s"), ("restore command", "m?s")):
        assert re.search(rf"^  {name} +\d+(\.\d+)? {unit}$", done.stdout, re.MULTILINE), done.stdout
    assert list(tmp_path.iterdir()) == []
