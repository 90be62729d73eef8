# SPDX-License-Identifier: Apache-2.0
"""Dumps with something happening at a step of the engine's (meddling.py)."""

import os
import random
import subprocess
import sys
from pathlib import Path

from faults.victim import HERE, SETTLE_S, SOURCE, Victim
from harness.events import Nursery


def meddled(step: int, deeds: str, victim: Victim, images: Path, *options: str) -> tuple[int, str]:
    """A dump at whose `step`th step the deeds are done; its status and words.  Where it has fewer, and the
    victim goes on (-R), one more dump is made, and they are done at its last."""
    command = [sys.executable, HERE / "meddling.py", str(step), deeds, "dump", "-t", str(victim.pid), "-D", images]
    environment = dict(os.environ, PYTHONPATH=str(SOURCE), PYTHONDONTWRITEBYTECODE="1")
    with Nursery(SETTLE_S):
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, timeout=120)
    lines = done.stdout.splitlines()
    for line in lines:
        if line.startswith("steps ") and (steps := int(line.split()[1])) < step and "-R" in options:
            return meddled(steps, deeds, victim, images, *options)
    words = "\n".join(line for line in lines if not line.startswith("steps "))
    return done.returncode, (done.stderr + words).strip()


def count(victim: Victim, images: Path, deeds: str = "") -> int:
    """How many steps a dump has: a few more or less from time to time."""
    command = [sys.executable, HERE / "meddling.py", "0", deeds, "dump", "-t", str(victim.pid), "-D", images, "-R"]
    environment = dict(os.environ, PYTHONPATH=str(SOURCE), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert victim.harm("signals") == []
    return int(done.stdout.split()[1])


def some(steps: int, number: int) -> list[int]:
    """About `number` of them, spread evenly, others each time; all where TORPOR_STEPS=all."""
    stride = 1 if os.environ.get("TORPOR_STEPS") == "all" else max(1, steps // number)
    return list(range(random.randrange(stride) + 1, steps + 1, stride))
