# SPDX-License-Identifier: Apache-2.0
"""A released wheel brings the executor along: whoever installs it needs no compiler.  A checkout in which nothing was
built says what it needs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from check.support import Victim

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="freezing needs root")

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "blobs", "tests", "docs", "bench")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh one, nothing built in it."""
    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=NOT_COPIED))


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    (tmp_path / "images").mkdir()
    with Victim(tmp_path, "sh", "-c", "echo ready; exec sleep 1000") as victim:
        yield victim


def dump(package: Path, victim: Victim, images: Path) -> "subprocess.CompletedProcess[str]":
    """By that package, where there is no other program in reach."""
    return subprocess.run(
        [sys.executable, "-m", "torpor", "dump", "-R", "-t", str(victim.pid), "-D", images, "--manage-cgroups=ignore"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", timeout=60,
        env={"PATH": "", "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def test_a_wheel_needs_no_compiler(checkout: Path, victim: Victim, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    done = subprocess.run(build, cwd=checkout, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    package = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "-q", "install", "--no-index", "--no-deps", "--no-compile",
               "--disable-pip-version-check", "--target", str(package), str(wheel)]  # fmt: skip
    done = subprocess.run(install, cwd="/", capture_output=True, text=True, timeout=120, env={"PATH": ""})
    assert done.returncode == 0, done.stderr
    assert (package / "bin/torpor").exists()
    shutil.rmtree(checkout)
    done = dump(package, victim, tmp_path / "images")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("dumped 1 task")


def test_a_checkout_says_what_it_needs(checkout: Path, victim: Victim, tmp_path: Path) -> None:
    done = dump(checkout / "src", victim, tmp_path / "images")
    assert done.returncode == 1
    assert "the executor for" in done.stderr and "is not built" in done.stderr, done.stderr
    assert "run `make setup` (it needs gcc)" in done.stderr, done.stderr
    assert not list((tmp_path / "images").iterdir()) and victim.process.poll() is None
    status = Path(f"/proc/{victim.pid}/status").read_text()
    assert "TracerPid:\t0\n" in status and "State:\tS" in status
    setup = [sys.executable, "tools/build_executor.py"]
    done = subprocess.run(setup, cwd=checkout, capture_output=True, text=True, env={"PATH": "", "CC": "none"})
    assert done.returncode == 1 and "apt-get install --no-install-recommends gcc" in done.stderr, done.stderr
