# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of the engine while the first thread of a process sleeps in a call that cannot be made again: whenever it
was, the thread sleeps on.  It must never go home by itself, as the executor takes it: that ends with EINTR."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.victim import status, tracer
from harness import killing, warm
from torpor.kernel.syscall import NR

if os.geteuid():
    pytest.skip("tracing needs root", allow_module_level=True)

# Python's own sleep goes on with what is left.  The other is a futex that nobody wakes, with a relative time limit.
VICTIM = """
import ctypes, struct, sys
libc, limit = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(struct.pack("@2l", 600, 0))
word, number = ctypes.c_int(0), ctypes.c_long(int(sys.argv[2]))
print("ready", flush=True)
if sys.argv[1] == "nanosleep":
    got = libc.syscall(number, limit, None)
else:
    got = libc.syscall(number, ctypes.byref(word), ctypes.c_long(0), ctypes.c_long(0), limit, None, ctypes.c_long(0))
print("came back", got, ctypes.get_errno(), flush=True)
"""
STRIDE = 3  # all that goes wrong does so at some steps on end


@contextmanager
def asleep(name: str, said: Path) -> Iterator[int]:
    with open(said, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", VICTIM, name, str(NR[name])],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while said.read_text() != "ready\n" or status(process.pid, "State")[:1] != "S":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["nanosleep", "futex"])
def test_sleeps_on(name: str, tmp_path: Path) -> None:
    warm.import_all()
    with asleep(name, tmp_path / "said") as pid:
        code, steps, words = killing.dump(pid, tmp_path / "whole", 0)
        assert code == 0, words
        killed = 0
        for step in killing.some(steps, steps // STRIDE):
            code, ended, words = killing.dump(pid, tmp_path / str(step), step)
            assert code == (0 if ended else 1), words
            killed += not ended
            deadline = time.monotonic() + 20
            while status(pid, "State")[:1] != "S" or tracer(pid):
                assert time.monotonic() < deadline, f"step {step} of {steps}: it was left {status(pid, 'State')!r}"
                time.sleep(0.002)
            assert (tmp_path / "said").read_text() == "ready\n", f"killed at step {step} of {steps}"
        assert killed > steps // STRIDE // 2
