# SPDX-License-Identifier: Apache-2.0
"""The peer: CRIU 4.2, which the tests exchange images with and the benchmarks measure against."""

import functools
import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "peer-criu"


@functools.cache
def criu() -> tuple[Path | None, str]:
    """The `criu` command, or None and why there is none.  TORPOR_PEER=no: do not even try."""
    if os.environ.get("TORPOR_PEER") == "no":
        return None, "TORPOR_PEER=no"
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = done.stdout.split()
    if done.returncode or not lines:
        why = (done.stderr.strip().splitlines() or ["no word said"])[-1]
        return None, f"tests/peer-criu cannot set up CRIU here: {why}"
    return Path(lines[-1]), ""


def crit() -> Path | None:
    """CRIU's own image decoder."""
    command, _ = criu()
    return command.parent / "crit" if command else None
