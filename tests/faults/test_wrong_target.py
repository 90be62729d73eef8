# SPDX-License-Identifier: Apache-2.0
"""Processes that cannot be dumped: one sentence that says why, status 1, nobody touched."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.victim import SOURCE, Command, Victim, compiled, dump, run, status, tracer
from harness.events import Nursery, children_of

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim.of(1) as running:
        yield running


def refused(pid: int, images: Path, *words: str, prefix: tuple[str, ...] = ()) -> str:
    before = sorted(images.iterdir())
    with Nursery():
        code, text = run("dump", "-t", str(pid), "-D", images, "-R", prefix=prefix)
    assert code == 1, text
    assert text.startswith("torpor: ") and "\n" not in text and "a bug" not in text, text
    for word in words:
        assert word in text, text
    assert sorted(images.iterdir()) == before
    return text


def unused_pid() -> int:
    highest = int(Path("/proc/sys/kernel/pid_max").read_text())
    return next(pid for pid in range(highest - 1, 1, -1) if not os.path.exists(f"/proc/{pid}"))


def test_nobody(tmp_path: Path) -> None:
    pid = unused_pid()
    refused(pid, tmp_path, f"there is no process {pid}")


@pytest.mark.parametrize("pid", ["0", "-1", "x", "99999999999999999999", "1.5", ""])
def test_not_a_pid(pid: str, tmp_path: Path) -> None:
    code, text = run("dump", "-t", pid, "-D", tmp_path)
    assert code and text.startswith("torpor: ") and "a bug" not in text and "\n" not in text, text


def test_init(tmp_path: Path) -> None:
    refused(1, tmp_path, "process 1")


def test_kernel_thread(tmp_path: Path) -> None:
    if status(2, "Name") != "kthreadd":
        pytest.skip("kernel threads are not seen from here")
    refused(2, tmp_path, "kernel")


def test_thread(victim: Victim, tmp_path: Path) -> None:
    tid = max(map(int, os.listdir(f"/proc/{victim.pid}/task")))
    refused(tid, tmp_path, str(tid), "thread", f"-t {victim.pid}")
    assert victim.harm() == []


def test_zombie(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        refused(child.pid, tmp_path, str(child.pid), "ended")
    finally:
        child.wait()


def test_itself(tmp_path: Path) -> None:
    """An ancestor, which the shell that starts torpor is; and torpor's own PID."""
    for which in ("$$", "$PPID"):
        command = f"PYTHONPATH={SOURCE} {sys.executable} -m torpor dump -t {which} -D {tmp_path} -R; echo status $?"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        assert "status 1" in done.stdout and "runs inside that tree" in done.stderr, done.stderr
    command = f"PYTHONPATH={SOURCE} exec {sys.executable} -m torpor dump -t $$ -D {tmp_path} -R"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "runs inside that tree" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@root
def test_foreign(victim: Victim, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o11)
    refused(victim.pid, tmp_path, "no permission", str(victim.pid), prefix=NOBODY)
    assert victim.harm() == []


@root
def test_mine_and_without_rights(tmp_path: Path) -> None:
    """An ordinary user's own program: what it has mapped is not for him to see.  `check -t` says so, too."""
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o11)
    tmp_path.chmod(0o777)
    process = subprocess.Popen([*NOBODY, "sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        refused(process.pid, tmp_path, "no permission to look at the files that it has mapped", prefix=NOBODY)
        code, text = run("check", "-t", process.pid, prefix=NOBODY)
        assert code == 1 and "no permission to look at the files that it has mapped" in text, text
        assert status(process.pid, "State") == "S (sleeping)"
    finally:
        process.kill()
        process.wait()


TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0
print("ready", flush=True)
sys.stdin.read()
"""


def test_traced(victim: Victim, tmp_path: Path) -> None:
    """By a debugger, of the root or of a child: the tracer is named, and keeps what it traces."""
    for pid in (victim.pid, children_of(victim.pid)[0]):
        debugger = subprocess.Popen(
            [sys.executable, "-c", TRACER, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert debugger.stdout
        try:
            assert debugger.stdout.readline() == "ready\n"
            refused(victim.pid, tmp_path, f"process {debugger.pid} traces it", str(pid))
            assert tracer(pid) == debugger.pid
        finally:
            debugger.communicate()
        assert victim.harm() == []


def test_two_at_once(victim: Victim, tmp_path: Path) -> None:
    """Of the same tree: one at least is whole; the other is whole too, or says that the tree is traced."""
    for _ in range(5):
        with Nursery():
            commands = []
            for name in ("one", "other"):
                (tmp_path / name).mkdir(exist_ok=True)
                commands.append(Command.dump(victim.pid, tmp_path / name, "-R"))
            codes = [command.wait() for command in commands]
        for command, code, name in zip(commands, codes, ("one", "other"), strict=True):
            assert (tmp_path / name / "inventory.img").exists() == (code == 0)
            assert code == 0 or "traces it already" in command.text, command.text
        assert 0 in codes, [command.text for command in commands]
        assert victim.harm("signals") == []
        for path in tmp_path.glob("*/*"):
            path.unlink()


def test_two_into_one_directory(tmp_path: Path) -> None:
    """Different trees: their images must not mix."""
    with Victim(compiled("tight"), "") as one, Victim(compiled("tight"), "") as other:
        for _ in range(4):
            with Nursery():
                commands = [Command.dump(victim.pid, tmp_path, "-R") for victim in (one, other)]
                codes = [command.wait() for command in commands]
            assert 0 in codes
            for command, code in zip(commands, codes, strict=True):
                assert code == 0 or "another dump" in command.text, command.text
            if codes != [0, 0]:  # else they came one after the other
                winner = (one, other)[codes.index(0)]
                cores = sorted(path.name for path in tmp_path.glob("ids-*.img"))
                assert cores == [f"ids-{winner.pid}.img"]
            for path in tmp_path.iterdir():
                path.unlink()


def test_older_checkpoint_survives_a_refusal(victim: Victim, tmp_path: Path) -> None:
    """What is refused before anything is written leaves an older checkpoint in the directory whole."""
    code, text = dump(victim.pid, tmp_path, "-R")
    assert code == 0, text
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused(unused_pid(), tmp_path)
    refused(2, tmp_path)
    with Victim(compiled("churn"), "vfork", compare=False) as parent:
        dump(parent.pid, tmp_path, "-R")
    if {path.name for path in tmp_path.iterdir()} == set(before):
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_older_checkpoint_is_none_after_a_failure(tmp_path: Path) -> None:
    """A dump that fails when it has begun to write: the directory holds no checkpoint, and says so."""
    with Victim.of(16) as victim:
        code, text = dump(victim.pid, tmp_path, "-R")
        assert code == 0, text
        with Nursery():
            command = Command.dump(victim.pid, tmp_path, "-R")
            pages = tmp_path / "pages-1.img"
            first = pages.stat().st_ino
            while command.process.poll() is None:
                try:
                    if pages.stat().st_ino != first:
                        break
                except FileNotFoundError:
                    continue
            if command.process.poll() is None:
                os.kill(command.pid, signal.SIGTERM)
            code = command.wait()
        deadline = time.monotonic() + 5
        while tracer(victim.pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert (tmp_path / "inventory.img").exists() == (code == 0)
        assert victim.harm("signals") == []


@pytest.mark.parametrize(("flags", "what"), [(0x100, "memory"), (0x400, "descriptors"), (0x200, "working directory")])
def test_shared_with_its_parent(flags: int, what: str, tmp_path: Path) -> None:
    """By CLONE_VM, CLONE_FILES, CLONE_FS: restored, it would have its own."""
    program = f"""
import ctypes
libc, stack = ctypes.CDLL(None), ctypes.create_string_buffer(1 << 20)
print(libc.clone(libc.pause, ctypes.c_void_p(ctypes.addressof(stack) + (1 << 20) - 64), {flags | signal.SIGCHLD}, None),
      flush=True)
libc.pause()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        refused(child, tmp_path, f"shares its {what} with process {parent.pid}", f"-t {parent.pid}")
        code, text = run("check", "-t", str(child))
        assert code == 1 and f"shares its {what} with process {parent.pid}" in text
        for pid in (child, parent.pid):
            os.kill(pid, signal.SIGKILL)
