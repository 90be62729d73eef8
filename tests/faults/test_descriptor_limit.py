# SPDX-License-Identifier: Apache-2.0
"""Torpor's own limit of open files, at dump and restore: raised as far as it may be, for as long as it works; else
refused beforehand."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torpor
from faults.victim import run
from harness.events import Nursery, tree_of, wait_end

CHILDREN = 60
FAMILY = f"""
import os, signal
for _ in range({CHILDREN}):
    if os.fork() == 0:
        signal.pause()
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def family() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.stdout.close()
    pids = tree_of(process.pid)
    yield process.pid
    for pid in reversed(pids):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def limits(pid: int) -> str:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max open files"))


def test_soft_limit(family: int, tmp_path: Path) -> None:
    """A hundred are not enough, and need not be."""
    before = [limits(pid) for pid in tree_of(family)]
    with Nursery():
        status, text = run(
            "dump", "-t", str(family), "-D", tmp_path, "-R", prefix=("prlimit", "--nofile=100:4096", "--")
        )
    assert status == 0, text
    assert [limits(pid) for pid in tree_of(family)] == before


@pytest.mark.parametrize("files", [8, 12, 16])
def test_hardly_any(family: int, files: int, tmp_path: Path) -> None:
    """Too few even to find out how many are needed."""
    with Nursery():
        status, text = run(
            "dump", "-t", str(family), "-D", tmp_path, "-R", prefix=("prlimit", f"--nofile={files}", "--")
        )
    assert status == 1 and text.startswith("torpor: ") and "ulimit -Hn" in text and "\n" not in text, text
    assert list(tmp_path.iterdir()) == []


def test_hard_limit(family: int, tmp_path: Path) -> None:
    """Refused before anything is touched, with the number that is needed; and with that, it works."""
    with Nursery():
        status, text = run("dump", "-t", str(family), "-D", tmp_path, "-R", prefix=("prlimit", "--nofile=100", "--"))
    assert status == 1 and "descriptors" in text and "ulimit -Hn" in text and "\n" not in text, text
    assert list(tmp_path.iterdir()) == []
    needed = text.split("ulimit -Hn ")[1].split()[0].rstrip(")")
    with Nursery():
        status, text = run(
            "dump", "-t", str(family), "-D", tmp_path, "-R", prefix=("prlimit", f"--nofile={needed}", "--")
        )
    assert status == 0, text


def test_library_leaves_the_limit(family: int, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        torpor.dump(family, str(tmp_path), leave_running=True)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


FEW = (
    64  # what each of the family may have: to give more back than Torpor's own hard limit is refused for another reason
)


def with_few(code: str, number: int = FEW) -> "subprocess.Popen[bytes]":
    """A program that may have few descriptors, when it has said that it is ready."""
    process = subprocess.Popen(
        ["prlimit", f"--nofile={number}", "--", sys.executable, "-c", code],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A family that may have few descriptors, dumped and ended."""
    images = tmp_path_factory.mktemp("images")
    process = with_few(FAMILY)
    with Nursery():
        status, text = run("dump", "-t", str(process.pid), "-D", images)
        process.wait()
    assert status == 0, text
    return process.pid, images


def test_hard_limit_at_restore(dumped: tuple[int, Path]) -> None:
    """Refused before anything is created, with the number that is needed; and with that, it works."""
    root, images = dumped
    with Nursery():
        status, text = run("restore", "-d", "-D", images, prefix=("prlimit", "--nofile=100", "--"))
    assert status == 1 and "61 tasks" in text and "ulimit -Hn" in text and "\n" not in text, text
    assert not os.path.exists(f"/proc/{root}")
    assert not (images / "stats-restore").exists()
    needed = text.split("ulimit -Hn ")[1].split()[0].rstrip(")")
    with Nursery():
        status, text = run("restore", "-d", "-D", images, prefix=("prlimit", f"--nofile={needed}", "--"))
        pids = tree_of(root) if status == 0 else []
        for pid in reversed(pids):
            os.kill(pid, signal.SIGKILL)
    assert status == 0 and len(pids) == 1 + CHILDREN, text


def test_soft_limit_at_restore(dumped: tuple[int, Path]) -> None:
    root, images = dumped
    with Nursery():
        status, text = run("restore", "-d", "-D", images, prefix=("prlimit", "--nofile=100:4096", "--"))
        found = [limits(pid) for pid in tree_of(root)] if status == 0 else []
        for pid in reversed(tree_of(root) if status == 0 else []):
            os.kill(pid, signal.SIGKILL)
    assert status == 0, text
    assert len(found) == 1 + CHILDREN and all(line.split()[3:5] == [str(FEW)] * 2 for line in found), found


SEGMENTS = 300
SHARED = f"""
import mmap, signal
areas = [mmap.mmap(-1, 4096) for _ in range({SEGMENTS})]
for number, area in enumerate(areas):
    area[:4] = number.to_bytes(4, "little")
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
raise SystemExit(any(area[:4] != number.to_bytes(4, "little") for number, area in enumerate(areas)))
"""


def test_many_shared_areas(tmp_path: Path) -> None:
    """Each shared area takes one descriptor, at dump and at restore; where they do not suffice, a dump is undone."""
    code = "import signal; signal.pthread_sigmask(0, [15])\n" + SHARED
    process = with_few(code)
    with Nursery():
        status, text = run("dump", "-t", str(process.pid), "-D", tmp_path, prefix=("prlimit", "--nofile=200", "--"))
    assert status == 1 and "hard limit is 200" in text and "ulimit -Hn" in text and "\n" not in text, text
    assert process.poll() is None and not (tmp_path / "inventory.img").exists()
    enough = ("prlimit", f"--nofile={SEGMENTS + 100}", "--")
    with Nursery():
        status, text = run("dump", "-t", str(process.pid), "-D", tmp_path, prefix=enough)
        process.wait()
        assert status == 0, text
        status, text = run("restore", "-d", "-D", tmp_path, prefix=enough)
        assert status == 0, text
        os.kill(process.pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(wait_end(process.pid, 30)) == 0


EVENTS = 300
COUNTERS = f"""
import os, signal
signal.pthread_sigmask(0, [15])
counters = [os.eventfd(number) for number in range(1, {EVENTS})]
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
raise SystemExit(any(os.eventfd_read(counter) != number for number, counter in enumerate(counters, 1)))
"""


def test_files_that_a_restore_could_not_hold(tmp_path: Path) -> None:
    """A dump needs few descriptors for open files, a restore one for each: the dump says what the restore will."""
    few = EVENTS + 20
    process = with_few(COUNTERS, few)
    limited = ("prlimit", f"--nofile={few}", "--")
    with Nursery():
        status, text = run("dump", "-t", str(process.pid), "-D", tmp_path, prefix=limited)
        process.wait()
        assert status == 0 and f"hard limit is {few}" in text, text
        needed = text.split("ulimit -Hn ")[1].split()[0].rstrip(")")
        status, text = run("restore", "-d", "-D", tmp_path, prefix=limited)
        assert status == 1 and f"ulimit -Hn {needed}" in text, text
        status, text = run("restore", "-d", "-D", tmp_path, prefix=("prlimit", f"--nofile={needed}", "--"))
        assert status == 0, text
        os.kill(process.pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(wait_end(process.pid, 30)) == 0
