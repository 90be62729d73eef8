# SPDX-License-Identifier: Apache-2.0
"""Two C programs that check themselves: one holds values in every register, one has a thousand threads."""

import os
import re
import signal
from pathlib import Path

import pytest
from support import Checkpoint, Service, compiled, wait_for

from harness.events import wait_end


def rounds(service: Service) -> int:
    """Ask the program how often all of its checks have been made."""
    before = service.said().count("rounds")
    os.kill(service.pid, signal.SIGUSR1)
    wait_for("an answer", lambda: service.said().count("rounds") > before)
    return int(re.findall(r"rounds \d+: (\d+)", service.said())[-1])


@pytest.mark.parametrize("command", ["registers AVX2", "registers AVX-512", "threads"])
def test_c_program(checkpoint: Checkpoint, tmp_path: Path, command: str) -> None:
    name, *words = command.split()
    service = Service([compiled(name, tmp_path), *words], tmp_path)
    wait_for("it to be ready", lambda: "ready" in service.said() or service.ended())
    if service.said().startswith("skip: "):
        wait_end(service.pid, 1)
        pytest.skip(service.said().strip().removeprefix("skip: "))
    wait_for("some rounds", lambda: rounds(service) > 10)

    checkpoint.dump(service.pid)
    checkpoint.restore()

    before = rounds(service)
    wait_for("rounds after the restore", lambda: rounds(service) > before + 10)
    service.end()
    said = service.said().splitlines()
    assert said[-1] == "pass", said[-5:]
