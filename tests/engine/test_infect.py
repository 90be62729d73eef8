# SPDX-License-Identifier: Apache-2.0
"""torpor.infect: system calls inside another process, which then goes on as it was."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor import infect
from torpor.engine.executor import Executor
from torpor.engine.program import CallFailed, Load32, Program
from torpor.errors import Refusal, TaskGone

# The package that is tested, also where it is not installed.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(infect.__file__).parents[2])}
VICTIM = """
import os, signal, sys, threading
r, w = os.pipe()
os.dup2(w, 77)
ready = threading.Barrier(4)
def work():
    ready.wait()
    while True:
        signal.pause()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
ready.wait()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class Victim:
    """A Python program that evaluates what it is sent."""

    def __init__(self, cwd: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd
        )
        assert self._line() == "ready"

    @property
    def pid(self) -> int:
        return self.process.pid

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, expression: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self._line()

    def facts(self) -> tuple[list[str], list[str], str]:
        """What must not change: areas, descriptors, the status lines that count."""
        with open(f"/proc/{self.pid}/maps") as maps, open(f"/proc/{self.pid}/status") as status:
            names = ("SigP", "SigB", "SigI", "SigC", "Shd", "Tracer", "Threads")
            lines = [line for line in status if line.startswith(names)]
            return sorted(maps), sorted(os.listdir(f"/proc/{self.pid}/fd")), "".join(lines)


@pytest.fixture
def victim(tmp_path: object) -> Iterator[Victim]:
    started = Victim(str(tmp_path))
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def test_asks_for_its_working_directory(victim: Victim, tmp_path: object) -> None:
    with infect.stopped(victim.pid) as task:
        assert task.getcwd() == str(tmp_path)
    assert victim.ask("os.getcwd()") == str(tmp_path)


def test_leaves_it_as_it_was(victim: Victim) -> None:
    before = victim.facts()
    for _ in range(20):
        with infect.stopped(victim.pid) as task:
            assert task.call("getpid") == victim.pid
    assert victim.facts() == before
    assert victim.ask("6 * 7") == "42"


def test_closes_a_descriptor(victim: Victim) -> None:
    with infect.stopped(victim.pid) as task:
        task.call("close", 77)
    assert "77" not in os.listdir(f"/proc/{victim.pid}/fd")
    assert victim.ask("1 + 1") == "2"


def test_makes_it_map_memory(victim: Victim) -> None:
    with infect.stopped(victim.pid) as task:
        address = task.mmap(1 << 16)
        task.write(address, b"hello")
    assert victim.ask(f"__import__('ctypes').string_at({address}, 5)") == "b'hello'"


def test_runs_a_program_whose_calls_use_earlier_results(victim: Victim, tmp_path: object) -> None:
    path = f"{tmp_path}/text"
    with open(path, "w") as file:
        file.write("from inside")
    with infect.stopped(victim.pid) as task:
        program = infect.Program()
        fd = program.call("openat", infect.AT_FDCWD, program.string(path), os.O_RDONLY, 0)
        text = program.space(64)
        length = program.call("read", fd, text, 64)
        program.call("close", fd)
        task.run(program)
        assert text.data[: length.value] == b"from inside"


def test_a_call_that_fails_says_which(victim: Victim) -> None:
    with infect.stopped(victim.pid) as task, pytest.raises(infect.CallFailed, match="close"):
        task.call("close", 12345)
    assert victim.ask("'alive'") == "alive"


def test_a_program_larger_than_the_area(victim: Victim) -> None:
    with infect.stopped(victim.pid) as task:
        program = infect.Program()
        results = [program.call("getpid") for _ in range(20_000)]
        task.run(program)
        assert {result.value for result in results} == {victim.pid}


def test_a_killed_host_leaves_the_process_unharmed(victim: Victim) -> None:
    before = victim.facts()
    host = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, signal, sys\nfrom torpor import infect\n"
            f"with infect.stopped({victim.pid}) as task:\n task.call('getpid')\n os.kill(os.getpid(), 9)",
        ],
        env=ENVIRONMENT,
    )
    assert host.wait() == -signal.SIGKILL
    assert victim.ask("'still here'") == "still here"
    after = victim.facts()
    assert after[1:] == before[1:]


def test_refuses_a_task_that_is_traced(victim: Victim) -> None:
    with infect.stopped(victim.pid):
        code = f"from torpor import infect\nwith infect.stopped({victim.pid}): pass"
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT
        )
        assert "traces it already" in other.stderr
    assert victim.ask("'free'") == "free"


def test_a_pid_that_does_not_exist() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises((TaskGone, Refusal)):
        infect.stopped(gone.pid).__enter__()


class Alarm(Exception):
    """What the host's handler raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def handler(*_: object) -> None:
        raise Alarm

    before, mask = signal.signal(signal.SIGALRM, handler), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.signal(signal.SIGALRM, before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_descriptors_that_a_failed_program_has_left(victim: Victim) -> None:
    """They are not taken for the next program's beginning, nor for its descriptors."""
    before = victim.facts()
    with infect.stopped(victim.pid) as task:
        runner = task._runner
        assert isinstance(runner, Executor)
        failing = Program()
        made = failing.call("dup", 77)
        failing.call("close", 999)
        runner.send_fds(failing, [0])
        with pytest.raises(CallFailed, match=r"close\(999\)"):
            task.run(failing)
        following = Program()
        following.call("close", made.value)
        numbers = runner.send_fds(following, [2])
        own = following.call("fcntl", Load32(numbers), 1)
        following.call("close", Load32(numbers))
        task.run(following)
        assert own.value == 1  # FD_CLOEXEC
    assert victim.facts() == before


@pytest.mark.parametrize("where", ["freeze", "Task", "Executor.run", "Task._let_go"])
@pytest.mark.usefixtures("alarm")
def test_a_handler_that_raises(victim: Victim, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Ctrl-C, or a time limit, in the middle of it: the process goes on as it was, and the exception comes."""
    before = victim.facts()
    holder: object = infect
    *path, name = where.split(".")
    for one in path:
        holder = getattr(holder, one)
    real = getattr(holder, name)

    def then_an_alarm(*args: object, **more: object) -> object:
        result = real(*args, **more)
        signal.raise_signal(signal.SIGALRM)
        return result

    monkeypatch.setattr(holder, name, then_an_alarm)
    with pytest.raises(Alarm), infect.stopped(victim.pid) as task:
        task.call("getpid")
    monkeypatch.undo()
    assert victim.facts() == before
    assert victim.ask("'as before'") == "as before"


@pytest.mark.usefixtures("alarm")
def test_a_handler_that_raises_at_any_time(victim: Victim) -> None:
    before = victim.facts()
    raised = 0
    for number in range(60):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + number * 2e-4)
            try:
                with infect.stopped(victim.pid) as task:
                    task.call("getpid")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Alarm:
            raised += 1
        assert victim.facts()[1:] == before[1:]
    assert raised
    assert victim.facts() == before
    assert victim.ask("'as before'") == "as before"
