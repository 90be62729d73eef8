# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of the engine while threads stand still in epoll_wait(2), which any stop ends with EINTR: the guardian
has them wait on, also those that the engine had done nothing to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.victim import Command, status, tracer
from harness.events import Nursery

if os.geteuid():
    pytest.skip("tracing needs root", allow_module_level=True)

KILLS = 8
# Python itself would begin the call again.
VICTIM = """
import ctypes, select, sys, threading
libc, poll, memory = ctypes.CDLL(None, use_errno=True), select.epoll(), b"x" * (64 << 20)
def wait():
    got = libc.epoll_wait(poll.fileno(), ctypes.create_string_buffer(64), 1, -1)
    print("came back", got, ctypes.get_errno(), flush=True)
for _ in range(3):
    threading.Thread(target=wait).start()
print("ready", flush=True)
wait()
"""


def threads_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def test_threads_wait_on(tmp_path: Path) -> None:
    killed = 0
    with Nursery(), open(tmp_path / "said", "w") as said:
        victim = subprocess.Popen([sys.executable, "-c", VICTIM], stdout=said, start_new_session=True)
        try:
            while len(threads_of(victim.pid)) < 4 or "ready" not in (tmp_path / "said").read_text():
                time.sleep(0.01)
            (images := tmp_path / "images").mkdir()
            for number in range(KILLS):
                command = Command.dump(victim.pid, images, "-R")
                tid = threads_of(victim.pid)[-1]
                command.wait_for_engine()
                while not (engine := tracer(tid)) and command.process.poll() is None:
                    pass
                time.sleep(number * 0.005)
                if engine and tracer(tid) == engine:
                    os.kill(engine, signal.SIGKILL)
                    killed += 1
                command.wait()
                deadline = time.monotonic() + 20
                while any(tracer(tid) or status(tid, "State")[0] != "S" for tid in threads_of(victim.pid)):
                    assert time.monotonic() < deadline, "it was left traced, or stopped"
                    time.sleep(0.01)
                time.sleep(0.1)
                assert (tmp_path / "said").read_text() == "ready\n", f"kill {killed}"
                assert victim.poll() is None and len(threads_of(victim.pid)) == 4
            assert killed > 1
        finally:
            victim.kill()
            victim.wait()
