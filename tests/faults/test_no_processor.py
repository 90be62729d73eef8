# SPDX-License-Identifier: Apache-2.0
"""A task that cannot stop because others have the processor: it is waited for longer than one that will not stop."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from faults.victim import tracer
from torpor.engine import freeze as module
from torpor.engine.freeze import freeze
from torpor.engine.thaw import thaw
from torpor.errors import Refusal

if os.geteuid():
    pytest.skip("freezing needs root", allow_module_level=True)
PROCESSOR = min(os.sched_getaffinity(0))


@contextmanager
def spinning(nice: int, policy: int) -> Iterator[int]:
    """A process that only ever computes, on that processor."""
    process = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        os.sched_setaffinity(process.pid, {PROCESSOR})
        os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        os.sched_setscheduler(process.pid, policy, os.sched_param(0))
        yield process.pid
    finally:
        os.kill(process.pid, signal.SIGKILL)
        os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(1))  # or it may take a minute to end
        process.wait()


@contextmanager
def elsewhere() -> Iterator[None]:
    """This process stays away from that processor, where there is another: it would starve, too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - {PROCESSOR} or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_starved(pid: int) -> None:
    """Until it has waited for a processor for a while, in which it got none."""

    def ran() -> str:
        return Path(f"/proc/{pid}/schedstat").read_text().split()[0]

    deadline = time.monotonic() + 30
    before = ""
    while (now := ran()) != before:
        before = now
        assert time.monotonic() < deadline, "it gets a processor all the same"
        time.sleep(0.2)


@pytest.mark.parametrize("patience", [0.0, 30.0], ids=["refused", "waited for"])
def test_gets_no_processor(patience: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STUBBORN_S", 0.05)
    monkeypatch.setattr(module, "_BUSY_S", patience)
    with elsewhere(), spinning(0, os.SCHED_IDLE) as victim, ExitStack() as others:
        for _ in range(4):
            others.enter_context(spinning(-20, os.SCHED_OTHER))
        wait_starved(victim)
        if patience:
            relief = threading.Timer(0.5, others.close)
            relief.start()
            process = freeze(victim).processes[victim]
            relief.join()
            thaw(process.threads.values())
            assert not tracer(victim)
        else:  # who cannot be stopped cannot be let go of, before its tracer ends: an engine does at once
            with pytest.raises(Refusal, match="it does not stop: it gets no processor"):
                freeze(victim)
