# SPDX-License-Identifier: Apache-2.0
"""What a parent is told of its children, and Torpor cannot bring back: that a zombie has dumped core, that a stopped
task goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torpor

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PARENT = """
import os, resource, signal, sys
pid = os.fork()
if not pid:
    resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1:] * 2)
    os.abort()
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(pid, flush=True)
signal.sigwait({signal.SIGTERM})
"""


CONTINUED = """
import os, signal
pid = os.fork()
if not pid:
    signal.sigwait({signal.SIGTERM})
os.kill(pid, signal.SIGSTOP)
os.waitid(os.P_PID, pid, os.WSTOPPED)
os.kill(pid, signal.SIGCONT)
os.waitid(os.P_PID, pid, os.WCONTINUED | os.WNOWAIT)
print(pid, flush=True)
signal.sigwait({signal.SIGTERM})
told = os.waitid(os.P_PID, pid, os.WCONTINUED | os.WNOHANG)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
raise SystemExit(0 if told else 3)
"""
BLOCKED = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"


def test_a_child_that_goes_on(tmp_path: Path) -> None:
    """The dump warns of news that would be lost, and its questions do not take them from the original."""
    images, log = tmp_path / "images", tmp_path / "log"
    images.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED + CONTINUED],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, cwd=tmp_path,
    ) as victim:  # fmt: skip
        try:
            assert victim.stdout and victim.stdout.readline()
            torpor.dump(victim.pid, images, leave_running=True, log_file=str(log), verbosity=2)
            victim.terminate()
            assert victim.wait(10) == 0, "the original has lost the news"
        finally:
            victim.kill()
    assert "WCONTINUED" in log.read_text()


def test_a_zombie_that_has_dumped_core(tmp_path: Path) -> None:
    """Nothing but dumping core sets that bit of a status: dump and restore say that it is lost."""
    images = tmp_path / "images"
    images.mkdir()
    victim = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n" + PARENT],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        assert victim.stdout
        zombie = int(victim.stdout.readline())
        victim.stdout.close()
        status = int(Path(f"/proc/{zombie}/stat").read_text().rpartition(")")[2].split()[49])
        if not status & 0x80:
            pytest.skip(f"no core is dumped here ({Path('/proc/sys/kernel/core_pattern').read_text().strip()})")
        log = tmp_path / "log"
        torpor.dump(victim.pid, images, leave_running=True, log_file=str(log), verbosity=2)
        assert f"task {zombie} (" in log.read_text() and "has dumped core" in log.read_text()
    finally:
        victim.kill()
        victim.wait()
