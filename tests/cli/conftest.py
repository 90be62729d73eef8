# SPDX-License-Identifier: Apache-2.0
"""Running the command as a user does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def torpor(tmp_path: Path) -> Run:
    """Run torpor with these arguments in a directory of its own, without anybody's configuration files."""

    def run(*argv: str, program: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, program] if program else [sys.executable, "-m", "torpor"]
        names = {"PYTHONPATH": str(SOURCE), "HOME": str(tmp_path), **environment}
        return subprocess.run(
            [*command, *argv], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={**os.environ, **names}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run
