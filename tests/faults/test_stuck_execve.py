# SPDX-License-Identifier: Apache-2.0
"""A process that is in execve(2) for long: PTRACE_SEIZE waits for that, and a dump must not wait with it for ever."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from faults.victim import run, tracer
from harness.events import Nursery
from torpor.kernel import ptrace

if os.geteuid():
    pytest.skip("tracing needs root", allow_module_level=True)

WALL = 0x40000000  # waitpid(2): threads, too
# Its second thread is traced by this test, which does not ask for its end: until it does, execve(2) waits.
VICTIM = """
import os, sys, threading, time
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
os.execv("/bin/sleep", ["sleep", "1000"])
"""


def poll_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_is_given_up(tmp_path: Path) -> None:
    with Nursery():
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert victim.stdin and victim.stdout
        thread = 0
        try:
            assert victim.stdout.readline() == "ready\n"
            thread = next(int(tid) for tid in os.listdir(f"/proc/{victim.pid}/task") if int(tid) != victim.pid)
            ptrace.seize(thread, 0)
            victim.stdin.write("\n")
            victim.stdin.flush()
            poll_until(lambda: " Z " in Path(f"/proc/{victim.pid}/task/{thread}/stat").read_text())
            code, text = run("dump", "-t", str(victim.pid), "-D", tmp_path, "-R", "--timeout", "1")
            assert code == 1 and "could not be traced in 1 s" in text and "--timeout" in text, text
            assert not list(tmp_path.iterdir())
            os.waitpid(thread, WALL)
            poll_until(lambda: os.readlink(f"/proc/{victim.pid}/exe").endswith("sleep"))
            assert not tracer(victim.pid)
        finally:
            victim.kill()
            with suppress(ChildProcessError):
                os.waitpid(thread, WALL)
            victim.wait()
            victim.stdin.close()
            victim.stdout.close()
