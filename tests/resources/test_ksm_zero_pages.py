# SPDX-License-Identifier: Apache-2.0
"""Zeros that a program has written over a file's content in its private mapping stay zeros, also where KSM has put the
zero page in their place (use_zero_pages): a zero page elsewhere is one that was only read, and need not be stored."""

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

KSM = Path("/sys/kernel/mm/ksm")
PAGES = 64
PATIENCE_S = 60
SETTINGS = {"use_zero_pages": "1", "sleep_millisecs": "1", "run": "1"}
PROGRAM = f"""
import mmap, signal, sys
size = {PAGES} * mmap.PAGESIZE
with open(sys.argv[1], "rb") as file:
    memory = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
memory[:] = bytes(size)
memory.madvise(mmap.MADV_MERGEABLE)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
print("the same" if not any(memory[:]) else "other", flush=True)
"""


@contextmanager
def merging() -> Iterator[None]:
    """KSM merges, and uses the zero page; afterwards it does what it did before."""
    before = {name: (KSM / name).read_text() for name in SETTINGS}
    try:
        for name, value in SETTINGS.items():
            (KSM / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            (KSM / name).write_text(value)


def zero_pages(pid: int) -> int:
    lines = Path(f"/proc/{pid}/ksm_stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("ksm_zero_pages"))


def wait(pid: int, out: Path, word: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while word not in out.read_text():
        assert time.monotonic() < deadline, out.read_text()
        time.sleep(0.01)


def test_zeros_stay_zeros(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("freezing needs root")
    if not (KSM / "ksm_zero_pages").exists() or not os.access(KSM / "use_zero_pages", os.W_OK):
        pytest.skip("this kernel does not tell of KSM's zero pages, or takes no settings here")
    out, images, content = tmp_path / "out", tmp_path / "images", tmp_path / "content"
    images.mkdir()
    content.write_bytes(b"file" * (PAGES * os.sysconf("SC_PAGESIZE") // 4))
    with out.open("wb") as file:
        victim = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(content)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        wait(victim.pid, out, "ready")
        with merging():
            deadline = time.monotonic() + PATIENCE_S
            while zero_pages(victim.pid) < PAGES // 2:
                assert time.monotonic() < deadline, "KSM has merged nothing"
                time.sleep(0.01)
            torpor.dump(victim.pid, str(images))
        assert victim.wait() == -signal.SIGKILL
        torpor.restore(str(images))
        os.kill(victim.pid, signal.SIGTERM)
        wait(victim.pid, out, "\nthe same\n")
    finally:
        victim.kill()
        victim.wait()
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
