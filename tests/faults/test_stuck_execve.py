# SPDX-License-Identifier: Apache-2.0
"""A process that is in execve(2) for long: PTRACE_SEIZE waits for that, and a dump must not wait with it for ever."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import torpor
from faults.victim import SOURCE, run, tracer
from harness.events import Nursery
from torpor import survey
from torpor.kernel import ptrace

if os.geteuid():
    pytest.skip("tracing needs root", allow_module_level=True)

WALL = 0x40000000  # waitpid(2): threads, too
O_TRACEEXEC, EVENT_EXEC = 0x10, 4
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


@contextmanager
def stuck() -> Iterator[tuple[int, int]]:
    """A process inside execve(2), and its thread for which that waits."""
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
            yield victim.pid, thread
        finally:
            victim.kill()
            with suppress(ChildProcessError):
                os.waitpid(thread, WALL)
            victim.wait()
            victim.stdin.close()
            victim.stdout.close()


def let_go(pid: int, thread: int) -> None:
    os.waitpid(thread, WALL)
    poll_until(lambda: os.readlink(f"/proc/{pid}/exe").endswith("sleep"))


def goes_on(pid: int, thread: int) -> None:
    let_go(pid, thread)
    assert not tracer(pid)


def test_is_refused_before_anything_stands_still(tmp_path: Path) -> None:
    with stuck() as (pid, thread):
        code, text = run("dump", "-t", str(pid), "-D", tmp_path, "-R", "--timeout", "1")
        assert code == 1 and "is in execve(2) since 1 s" in text and "frozen" not in text, text
        assert not list(tmp_path.iterdir())
        code, text = run("check", "-t", str(pid))
        assert code == 1 and "is in execve(2)" in text, text
        goes_on(pid, thread)


def test_dump_waits_until_it_is_over(tmp_path: Path) -> None:
    with stuck() as (pid, thread):
        command = [sys.executable, "-m", "torpor.cli", "dump", "-t", str(pid), "-D", str(tmp_path), "-R"]
        dump = subprocess.Popen(command, env=dict(os.environ, PYTHONPATH=str(SOURCE)))
        with pytest.raises(subprocess.TimeoutExpired):
            dump.wait(1)
        let_go(pid, thread)  # and it is dumped at once
        assert dump.wait(30) == 0
        assert not tracer(pid)


def test_freeze_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins after the dump has looked for it.  What else there is of the tree does not notice."""
    monkeypatch.setattr(survey, "in_execve", lambda _: 0)
    with stuck() as (pid, thread):
        with pytest.raises(torpor.TorporError, match=r"could not be traced in 1 s.*--timeout") as failure:
            torpor.dump(pid, tmp_path, leave_running=True, timeout=1)
        assert failure.value.code == "timeout"
        assert not list(tmp_path.iterdir())
        goes_on(pid, thread)


def test_stopped_on_the_way_out_of_it(tmp_path: Path) -> None:
    """Which is no longer inside, though it has made no other system call yet."""
    with Nursery():
        script = "import os, sys; sys.stdin.readline(); os.execv('/bin/sleep', ['sleep', '1000'])"
        victim = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, start_new_session=True)
        assert victim.stdin
        try:
            ptrace.seize(victim.pid, O_TRACEEXEC)
            victim.stdin.write(b"\n")
            victim.stdin.close()
            _, status = os.waitpid(victim.pid, WALL)
            assert status >> 16 == EVENT_EXEC
            victim.send_signal(signal.SIGSTOP)
            ptrace.detach(victim.pid)
            poll_until(lambda: " T " in Path(f"/proc/{victim.pid}/stat").read_text())
            code, text = run("dump", "-t", str(victim.pid), "-D", tmp_path, "-R", "--timeout", "1")
            assert code == 0, text
        finally:
            victim.kill()
            victim.wait()
