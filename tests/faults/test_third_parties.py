# SPDX-License-Identifier: Apache-2.0
"""What others do to a tree while it is being dumped, and trees that are in an awkward state when it begins."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.steps import count, meddled, some
from faults.victim import SETTLE_S, Command, Victim, compiled, dump, status, tracer, vitals
from harness.events import Nursery, children_of

DIE = f"engine:{signal.SIGKILL:d}"


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim.of(1) as running:
        yield running


@pytest.fixture(scope="module")
def steps(victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> int:
    return count(victim, tmp_path_factory.mktemp("counted"))


def state(pid: int) -> str:
    return status(pid, "State")[:1]


def states(pid: int) -> set[str]:
    """Of all threads: a stop takes one after the other."""
    stats = [Path(f"/proc/{pid}/task/{tid}/stat").read_text() for tid in os.listdir(f"/proc/{pid}/task")]
    return {stat.rpartition(") ")[2][0] for stat in stats}


def _until(what: str, condition: Callable[[], bool], patience: float = 10) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_stopped_before(victim: Victim, steps: int, tmp_path: Path, dies: bool) -> None:
    """A task that job control has stopped stays so, whether the dump ends well or is killed."""
    os.kill(victim.pid, signal.SIGSTOP)
    _until("it does not stop", lambda: states(victim.pid) == {"T"})
    try:
        stopped = vitals(victim.pid)
        for step in some(steps, 10) if dies else [0, 0]:
            meddled(step, DIE, victim, tmp_path, "-R")
            assert victim.changes(before=stopped) == [], f"step {step}"
            assert state(victim.pid) == "T"
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    assert victim.harm("signals") == []


def test_is_stopped_meanwhile(victim: Victim, steps: int, tmp_path: Path) -> None:
    for step in some(steps, 10):
        code, text = meddled(step, f"{victim.pid}:{signal.SIGSTOP:d}", victim, tmp_path, "-R")
        assert code == 0, f"step {step}: {text}"
        _until(f"SIGSTOP at step {step} is lost", lambda: state(victim.pid) == "T")
        os.kill(victim.pid, signal.SIGCONT)
        assert victim.harm("signals") == [], f"step {step}"


def test_is_stopped_and_continued_meanwhile(victim: Victim, steps: int, tmp_path: Path) -> None:
    deeds = f"{victim.pid}:{signal.SIGSTOP:d},{victim.pid}:{signal.SIGCONT:d}"
    for step in some(steps, 10):
        code, text = meddled(step, deeds, victim, tmp_path, "-R")
        assert code == 0, f"step {step}: {text}"
        assert victim.harm("signals") == [], f"step {step}"


def test_is_stopped_and_torpor_dies(victim: Victim, steps: int, tmp_path: Path) -> None:
    """Nobody remembers the stop but the kernel.  At the last steps some threads have been let go, and take it."""
    for step in [*some(steps, 10), *range(steps - 12, steps - 4)]:
        meddled(step, f"{victim.pid}:{signal.SIGSTOP:d},{DIE}", victim, tmp_path, "-R")
        _until(f"SIGSTOP at step {step} is lost", lambda: state(victim.pid) == "T" and not tracer(victim.pid))
        os.kill(victim.pid, signal.SIGCONT)
        assert victim.harm("signals") == [], f"step {step}"


def test_gets_signals_meanwhile(victim: Victim, steps: int, tmp_path: Path) -> None:
    deeds = ",".join(f"{victim.pid}:{number:d}" for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCHLD))
    for step in some(steps, 10):
        code, text = meddled(step, deeds, victim, tmp_path, "-R")
        assert code == 0, f"step {step}: {text}"
        assert victim.harm("signals") == [], f"step {step}"


def test_is_killed_meanwhile(steps: int, tmp_path: Path) -> None:
    """Somebody else ends it: a sentence, status 1, and nobody waits for ever.  Too late to matter: status 0."""
    failed = 0
    for step in some(steps, 10):
        with Victim.of(1) as doomed:
            code, text = meddled(step, f"{doomed.pid}:{signal.SIGKILL:d}", doomed, tmp_path, "-R")
            assert doomed.process.wait(10) == -signal.SIGKILL
            if code:
                failed += 1
                assert "ended" in text and "a bug" not in text and "Traceback" not in text, f"step {step}: {text}"
                assert not (tmp_path / "inventory.img").exists()
    assert failed


def test_a_child_that_ends_after_a_refusal_hides_nothing(tmp_path: Path) -> None:
    """The refused tree goes on, and a child of it ends, before Torpor says what was in the way."""
    script = """if True:
        import os, socket
        if os.fork():
            os.wait()
            os._exit(0)
        listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(b"")
        listener.listen()
        client.connect(listener.getsockname())
        client.send(b"x")
        print(os.getpid(), flush=True)
        os.read(0, 1)
        os._exit(0)
    """
    running = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with running:
        assert running.stdin and running.stdout
        child = int(running.stdout.readline())

        def end_it() -> None:
            _until("it does not stop", lambda: states(child) == {"t"})
            os.write(running.stdin.fileno(), b"x")

        thread = threading.Thread(target=end_it)
        thread.start()
        code, text = dump(running.pid, tmp_path, "-R")
        thread.join()
        assert running.wait(10) == 0
        assert code == 1 and "nobody has accepted yet" in text, text


def test_child_is_killed_meanwhile(steps: int, tmp_path: Path) -> None:
    """One of the tree ends: the others are unharmed."""
    for step in some(steps, 8):
        with Victim.of(1) as parent:
            child = children_of(parent.pid)[0]
            code, text = meddled(step, f"{child}:{signal.SIGKILL:d}", parent, tmp_path, "-R")
            if code:
                assert "ended" in text and "a bug" not in text and "Traceback" not in text, f"step {step}: {text}"
            _until("the parent is held", lambda: not tracer(parent.pid))
            assert parent.ask("check") == "fail: the child does not answer"


def test_guardian_is_killed(victim: Victim, steps: int, tmp_path: Path) -> None:
    """It is needed only where the engine dies too."""
    for step in some(steps, 4):
        code, text = meddled(step, f"guardian:{signal.SIGKILL:d}", victim, tmp_path, "-R")
        assert code == 0, text
        assert victim.harm("signals") == []


def test_guardian_is_slow(victim: Victim, steps: int, tmp_path: Path) -> None:
    """It lets nothing run that is not to run, however shortly: here that is 20 ms."""
    for step in [*some(steps, 10), *range(steps - 20, steps + 1)]:
        meddled(step, f"slowly,{DIE}", victim, tmp_path, "-R")
        assert victim.harm("signals") == [], f"step {step}"


def test_all_are_killed_while_it_writes(tmp_path: Path) -> None:
    """Front, engine and guardian: then nobody is left, and the victim goes home by itself."""
    with Victim.of(64) as victim:
        command = Command.dump(victim.pid, tmp_path, "-R")
        _until("it does not write", lambda: _size(tmp_path / "pages-1.img") > 1 << 20)
        engine = command.engine
        assert engine
        for pid in [*children_of(engine), engine, command.pid]:
            os.kill(pid, signal.SIGKILL)
        command.process.wait()
        # Nobody could unmap the way home: one area more, and what counts areas.
        _until("it is not as it was", lambda: not _beside(victim.changes(0), " area ", "Vm", "vsize"))
        assert victim.ask("signals").startswith("ok")


def _beside(harm: list[str], *words: str) -> list[str]:
    return [line for line in harm if not any(word in line for word in words)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# -- awkward trees ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["threads", "forks", "vforks", "spawns", "execs"])
def test_churn(what: str, tmp_path: Path) -> None:
    """Trees that change all the time: dumped, or refused in words, and unharmed."""
    with Victim(compiled("churn"), what, compare=False) as churning:
        dumped = 0
        for number in range(4):
            with Nursery(SETTLE_S):
                code, text = dump(churning.pid, tmp_path, "-R")
            assert churning.ask("check") == "ok", f"dump {number}: {text}"
            assert "a bug" not in text and "Traceback" not in text, text
            if code:
                assert any(word in text for word in ("stop", "ended", "vfork")), text
            dumped += not code
        assert dumped, text


@pytest.mark.parametrize("what", ["threads", "forks", "spawns"])
def test_churn_and_torpor_dies(what: str, tmp_path: Path) -> None:
    with Victim(compiled("churn"), what, compare=False) as churning:
        for step in range(3, 120, 15):
            meddled(step, DIE, churning, tmp_path, "-R")
            assert churning.ask("check") == "ok", f"step {step}"


def test_vfork(tmp_path: Path) -> None:
    """A parent whose vfork child does not go on: refused by name, soon, and unharmed."""
    with Victim(compiled("churn"), "vfork") as parent:
        code, text = dump(parent.pid, tmp_path, "-R")
        if code:
            assert str(parent.pid) in text and "vfork" in text and "a bug" not in text, text
        assert parent.harm() == []


def _limits(**limits: int) -> Callable[[], None]:
    def set_them() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    return set_them


TIGHT = {
    "no descriptors left": ("fds", _limits(NOFILE=64)),
    "one descriptor left": ("fds but one", _limits(NOFILE=64)),
    "no address space left": ("space", None),
    "memory locked to the limit": ("locked", None),
}


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_tight(name: str, dies: bool, tmp_path: Path) -> None:
    """Victims at a limit: dumped, or refused in words, and unharmed."""
    word, setup = TIGHT[name]
    with Victim(compiled("tight"), word, setup=setup) as tight:
        steps = 0 if not dies else 40 if word == "space" else count(tight, tmp_path)
        for step in some(steps, 8) if dies else [0]:
            with Nursery(SETTLE_S):
                code, text = meddled(step, DIE, tight, tmp_path, "-R")
            assert tight.harm() == [], f"step {step}: {text}"
            if not dies:
                assert "a bug" not in text and "Traceback" not in text, text
                assert code == 0 or (word == "space" and "prlimit --as" in text), text


def test_subprocess_of_the_test_is_unharmed(victim: Victim, tmp_path: Path) -> None:
    """Torpor waits for nobody's children but its own."""
    other = subprocess.Popen(["sleep", "0.2"])
    code, text = dump(victim.pid, tmp_path, "-R")
    assert code == 0, text
    assert other.wait(10) == 0
