# SPDX-License-Identifier: Apache-2.0
"""Format, lint and types are tests, so that one command checks everything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "documents": ["tools/docs.py", "--check"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_clean(command: list[str]) -> None:
    start = [sys.executable] if command[0].endswith(".py") else [sys.executable, "-m"]
    done = subprocess.run([*start, *command], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, f"\n{done.stdout}{done.stderr}"


def test_licence_and_docstring() -> None:
    """Every source file says what it may be used for and what it is."""
    for path in sorted(ROOT.glob("src/**/*.py")):
        lines = path.read_text().splitlines()
        assert lines[0] == "# SPDX-License-Identifier: Apache-2.0", path
        assert lines[1].startswith(('"""', 'r"""')), path
