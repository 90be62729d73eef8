# SPDX-License-Identifier: Apache-2.0
"""The library inside a host program: its children, signals, directory, descriptors and threads are as before."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torpor
from check.support import ENVIRONMENT, Victim
from harness.events import wait_end
from torpor.engine.process import Report, run_engine
from torpor.engine.waiting import check_cancelled

SLEEPER = (sys.executable, "-S", "-c", "print('ready', flush=True); import time; time.sleep(1000)")
CORE_SIGNALS = range(1, 32)


def facts_of_the_host() -> dict[str, object]:
    status = Path("/proc/self/status").read_text().splitlines()
    return {
        "directory": os.getcwd(),
        "descriptors": {name: link for name in os.listdir("/proc/self/fd") if (link := link_of(name))},
        "handlers": [signal.getsignal(number) for number in CORE_SIGNALS],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "threads": set(os.listdir("/proc/self/task")),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
        "status": [line for line in status if line.startswith(("Umask", "SigPnd", "ShdPnd", "SigIgn", "Cap"))],
    }


def link_of(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:  # that by which the directory was read
        return ""


@contextmanager
def victims(directory: Path, count: int) -> Iterator[list[Victim]]:
    started: list[Victim] = []
    try:
        for number in range(count):
            (directory / f"images{number}").mkdir()
            (home := directory / f"home{number}").mkdir()
            started.append(Victim(home, *SLEEPER))
        yield started
    finally:
        for victim in started:
            victim.__exit__(None, None, None)


def dump_and_restore(victim: Victim, images: Path) -> None:
    torpor.dump(victim.pid, images, manage_cgroups="ignore", log_file=str(images / "log"), verbosity=4)
    victim.process.wait(10)
    result = torpor.restore(images, manage_cgroups="ignore")
    assert result.pid == victim.pid
    os.kill(result.pid, signal.SIGKILL)


def test_nothing_of_the_host_is_touched(tmp_path: Path) -> None:
    with victims(tmp_path, 1) as (victim,):
        ended = os.posix_spawn("/bin/true", ["true"], {})
        os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
        before = facts_of_the_host()
        torpor.check(pid=victim.pid, manage_cgroups="ignore")
        torpor.dump(victim.pid, tmp_path / "images0", leave_running=True, manage_cgroups="ignore")
        torpor.check(images=tmp_path / "images0", manage_cgroups="ignore")
        assert facts_of_the_host() == before
        assert os.waitpid(ended, os.WNOHANG) == (ended, 0), "a child of the host was waited for"


def test_a_dump_that_ends_the_tree_and_its_restore(tmp_path: Path) -> None:
    """The host still has its own child to wait for; of the restored tree it is the parent only as the tests' process,
    which adopts orphans."""
    with victims(tmp_path, 1) as (victim,):
        ended = os.posix_spawn("/bin/true", ["true"], {})
        os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
        before = facts_of_the_host()
        torpor.dump(victim.pid, tmp_path / "images0", manage_cgroups="ignore")
        assert os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT), "the dump has waited for a child of the host"
        assert facts_of_the_host() == before
        victim.process.wait(10)
        result = torpor.restore(tmp_path / "images0", manage_cgroups="ignore")
        os.kill(result.pid, signal.SIGKILL)
        wait_end(result.pid, 10)
        left = {str(victim.pid)}
        after = facts_of_the_host()
        assert set(str(before["children"]).split()) - set(str(after["children"]).split()) == left
        assert {**after, "children": ""} == {**before, "children": ""}
        assert os.waitpid(ended, os.WNOHANG) == (ended, 0), "a child of the host was waited for"


def test_a_host_with_many_files(tmp_path: Path) -> None:
    """select(2) takes no descriptor above 1,023; the next dump leaves no engine behind, either."""
    with victims(tmp_path, 1) as (victim,):
        script = f"""
import os, resource, torpor
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
files = [os.open("/dev/null", os.O_RDONLY) for number in range(1100)]
torpor.check(pid={victim.pid}, manage_cgroups="ignore")
print(torpor.dump({victim.pid}, {str(tmp_path / "images0")!r}, leave_running=True, manage_cgroups="ignore").tasks)
print(torpor.check().ok)
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
        )
        assert (done.returncode, done.stdout) == (0, "1\nTrue\n"), done.stderr


@pytest.mark.parametrize("blocked", [False, True])
def test_signals_are_the_hosts(blocked: bool) -> None:
    """One that ends the work is for the host's own handler, too, or for whoever waits for it."""
    script = f"""
import os, signal, sys, time, torpor, torpor.check
from torpor.engine import process, waiting
def work(report):
    report("ready", None)
    while True:
        waiting.check_cancelled()
        time.sleep(0.01)
sys.modules["torpor.check"].check_kernel = lambda options: process.run_engine(
    work, lambda kind, value: os.kill(os.getpid(), signal.SIGTERM))
told = []
def tell(*_):
    torpor.check(feature=["kcmp_epoll"])  # a handler may call Torpor, too
    told.append("told")
signal.signal(signal.SIGTERM, tell)
if {blocked}:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
try:
    torpor.check()
except torpor.TorporError as error:
    print(error.code, *told, *map(int, signal.sigpending()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (0, "cancelled 15\n" if blocked else "cancelled told\n"), done.stderr


def test_a_caller_that_fails_leaves_no_engine() -> None:
    def fail(kind: str, value: object) -> None:
        raise ZeroDivisionError

    def work(report: Report) -> None:
        report("ready", None)
        while True:
            check_cancelled()
            time.sleep(0.01)

    before = facts_of_the_host()
    with pytest.raises(ZeroDivisionError):
        run_engine(work, fail)
    assert facts_of_the_host() == before


class Large:
    """As if it did not fit into what memory is left."""

    def __reduce__(self) -> str:
        raise MemoryError


def test_an_answer_that_is_too_large() -> None:
    with pytest.raises(torpor.TorporError) as caught:
        run_engine(lambda report: Large())
    assert caught.value.code == "no-memory"


def test_a_restore_from_a_thread(tmp_path: Path) -> None:
    with victims(tmp_path, 1) as (victim,):
        failed: list[BaseException] = []

        def work() -> None:
            try:
                dump_and_restore(victim, tmp_path / "images0")
            except BaseException as error:
                failed.append(error)

        directory, mask = os.getcwd(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
        assert not thread.is_alive() and not failed, failed
        assert (os.getcwd(), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == (directory, mask)
        wait_end(victim.pid, 10)


def test_threads_take_turns(tmp_path: Path) -> None:
    """Four dumps at once: each ends, each log tells of its own process alone, and no other descriptor is closed."""
    with victims(tmp_path, 4) as all_of_them:
        failed: list[BaseException] = []

        def work(number: int) -> None:
            images = tmp_path / f"images{number}"
            try:
                torpor.dump(
                    all_of_them[number].pid, images, leave_running=True, manage_cgroups="ignore",
                    log_file=str(images / "log"), verbosity=4,
                )  # fmt: skip
            except BaseException as error:
                failed.append(error)

        before = facts_of_the_host()
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failed, failed
        assert not any(thread.is_alive() for thread in threads), "dumps wait for each other"
        # A thread that was joined may still be listed for a moment.
        after = facts_of_the_host() | {"threads": before["threads"]}
        assert after == before
        for number, victim in enumerate(all_of_them):
            log = (tmp_path / f"images{number}/log").read_text()
            told = [other.pid for other in all_of_them if re.search(rf"(process|task) {other.pid}\b", log)]
            assert told == [victim.pid], log


@pytest.mark.parametrize("habit", ["SIG_IGN", "lambda *_: reap()"])
def test_a_host_that_lets_nobody_wait(tmp_path: Path, habit: str) -> None:
    """It ignores SIGCHLD, or collects whatever has ended as soon as it is told."""
    with victims(tmp_path, 1) as (victim,):
        script = f"""
import os, torpor
from signal import *
def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError:
        pass
signal(SIGCHLD, {habit})
assert "No child processes" not in str(torpor.check())
print(torpor.dump({victim.pid}, {str(tmp_path / "images0")!r}, leave_running=True, manage_cgroups="ignore").tasks)
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
        )
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_command_of_somebody_who_ignores_the_end_of_children(tmp_path: Path) -> None:
    with victims(tmp_path, 1) as (victim,):
        dump = f"dump -R -t {victim.pid} -D {tmp_path}/images0 --manage-cgroups=ignore"
        for words in (dump, "check"):
            line = f"trap '' CHLD; {sys.executable} -m torpor {words}"
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
            assert done.returncode == 0 and "No child" not in done.stdout + done.stderr, done.stdout + done.stderr


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with victims(tmp_path, 1) as (victim,):
        monkeypatch.setattr(os, "fork", fork)
        before = facts_of_the_host()
        with pytest.raises(torpor.TorporError, match=r"no process.*pid_max") as failure:
            torpor.dump(victim.pid, tmp_path / "images0")
        assert failure.value.code == "no-processes"
        assert facts_of_the_host() == before
        monkeypatch.undo()
