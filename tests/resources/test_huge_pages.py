# SPDX-License-Identifier: Apache-2.0
"""An area that asks for huge pages gets them again, in the background, after its pages have come back as small ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torpor

SWITCHES = Path("/sys/kernel/mm/transparent_hugepage")
PATIENCE_S = 60
# khugepaged looks at 16 MB every ten seconds, whoever it is of, and rests for a minute where it got no page.
HASTE = {"scan_sleep_millisecs": "20", "alloc_sleep_millisecs": "20", "pages_to_scan": "65536"}
PROGRAM = """
import mmap, signal
memory = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
memory.write(bytes([7]) * len(memory))
print("ready", flush=True)
signal.pause()
"""


def huge(pid: int) -> int:
    """KiB of its memory that are in huge pages."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))


@contextmanager
def haste() -> Iterator[None]:
    before = {name: (SWITCHES / "khugepaged" / name).read_text() for name in HASTE}
    try:
        for name, value in HASTE.items():
            (SWITCHES / "khugepaged" / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            (SWITCHES / "khugepaged" / name).write_text(value)


def test_they_come_back(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("freezing needs root")
    if not SWITCHES.exists() or "[never]" in (SWITCHES / "enabled").read_text():
        pytest.skip("this kernel gives no huge pages")
    if not os.access(SWITCHES / "khugepaged/pages_to_scan", os.W_OK):
        pytest.skip("khugepaged cannot be told to hurry here")
    out, images = tmp_path / "out", tmp_path / "images"
    images.mkdir()
    with out.open("wb") as file:
        victim = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    while out.read_text() != "ready\n":
        assert victim.poll() is None, out.read_text()
        time.sleep(0.01)
    before = huge(victim.pid)
    torpor.dump(victim.pid, images)
    victim.wait()
    torpor.restore(images, restore_detached=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        with haste():
            while huge(victim.pid) < min(before, 2048) and time.monotonic() < deadline:
                time.sleep(0.1)
        assert huge(victim.pid) >= min(before, 2048) > 0
    finally:
        os.kill(victim.pid, signal.SIGKILL)
        os.waitpid(victim.pid, 0)
