# SPDX-License-Identifier: Apache-2.0
"""``torpor restore`` as PID 1 of a PID namespace of its own, as the documentation advises where PIDs are taken."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.events import children_of, describe

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
COMMAND = [sys.executable, "-m", "torpor"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")}
NAMESPACE = ["unshare", "-fp", "--mount-proc", "--kill-child"]
# At each SIGUSR1 it makes a grandchild that becomes an orphan, and then opens a pipe.
VICTIM = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.mkfifo(sys.argv[1])
os.close(os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT))
while signal.sigwait([signal.SIGUSR1]):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            while os.getppid() != 1:
                os.sched_yield()
            open(sys.argv[1], "w").close()
            signal.pause()
        os._exit(0)
    os.waitpid(child, 0)
"""


def await_gone(pid: int) -> None:
    """It has been reaped by another process, which nothing tells."""
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, describe(pid)
        time.sleep(0.01)


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


class Namespace:
    """A restore that waits, as PID 1."""

    def __init__(self, images: Path) -> None:
        self.restore = subprocess.Popen(
            [*NAMESPACE, *COMMAND, "restore", "-D", images], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.restore.stdout and self.restore.stdout.readline().startswith("restored 1 task")
        (self.init,) = children_of(self.restore.pid)
        (self.root,) = children_of(self.init)

    def enter(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return run("nsenter", "-t", str(self.init), "-p", "-m", *command)


@pytest.fixture
def dumped(tmp_path: Path) -> int:
    """The PID of a victim that is in images."""
    (tmp_path / "images").mkdir()
    (tmp_path / "again").mkdir()
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, tmp_path / "fifo", tmp_path / "ready"], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / "ready").exists():
        assert victim.poll() is None
        os.sched_yield()
    done = run(*COMMAND, "dump", "-t", str(victim.pid), "-D", str(tmp_path / "images"))
    victim.kill()
    victim.wait()
    assert done.returncode == 0, done.stderr
    return victim.pid


@pytest.fixture
def namespace(dumped: int, tmp_path: Path) -> Iterator[Namespace]:
    made = Namespace(tmp_path / "images")
    yield made
    made.restore.kill()  # and all in the namespace with it
    made.restore.wait()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_detached_the_tree_would_die_with_it(dumped: int, tmp_path: Path, dry: list[str]) -> None:
    done = run(*NAMESPACE, *COMMAND, "restore", "-d", *dry, "-D", str(tmp_path / "images"))
    assert done.returncode == 1 and "PID 1" in done.stderr and "leave -d out" in done.stderr
    assert done.stdout == ""


def test_a_dump_in_there_comes_to_its_end(dumped: int, namespace: Namespace, tmp_path: Path) -> None:
    done = namespace.enter(*COMMAND, "dump", "-t", str(dumped), "-D", str(tmp_path / "again"))
    assert done.returncode == 0 and done.stdout.startswith("dumped 1 task"), done.stderr
    assert namespace.restore.wait(60) == 0
    assert (tmp_path / "again/inventory.img").exists()


def test_orphans_are_reaped_and_waited_for(namespace: Namespace, tmp_path: Path) -> None:
    orphans = []
    for _ in range(2):
        os.kill(namespace.root, signal.SIGUSR1)
        (tmp_path / "fifo").read_bytes()
        orphans.append(*set(children_of(namespace.init)) - {namespace.root, *orphans})
    os.kill(orphans[0], signal.SIGKILL)
    await_gone(orphans[0])
    other = os.pidfd_open(orphans[1])
    os.kill(namespace.root, signal.SIGKILL)
    await_gone(namespace.root)
    assert not select.select([other], [], [], 0.2)[0] and namespace.restore.poll() is None
    signal.pidfd_send_signal(other, signal.SIGKILL)
    os.close(other)
    assert namespace.restore.wait(60) == 0
