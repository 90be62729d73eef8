# SPDX-License-Identifier: Apache-2.0
"""``torpor check -t PID``: what a tree owns, all that is in the way, and what it would cost; nothing is stopped."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import torpor
from check.support import Victim
from check.support import torpor as command
from torpor.check_tree import TreeReport
from torpor.memory import own_vdso

OWNER = """
import os, socket, sys, threading, time
fork = os.fork() if "child" in sys.argv else 1
if not fork:
    time.sleep(1000)
listener = socket.create_server(("127.0.0.1", 0))
if "connected" in sys.argv:
    peer = socket.create_connection(listener.getsockname())
    accepted = listener.accept()
pipe = os.pipe()
memory = bytearray(8 << 20)
memory[:] = b"x" * len(memory)
if "gone" in sys.argv:
    gone = open("gone", "w+b"); gone.write(bytes(3 << 20)); gone.flush(); os.unlink("gone")
    linked = open("linked", "w"); os.link("linked", "other"); os.unlink("linked")
for number in range(3):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if "lock" in sys.argv:
    import fcntl
    locked = open("locked", "w"); fcntl.flock(locked, fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(1000)
"""


def owner(directory: Path, *what: str) -> Victim:
    return Victim(directory, sys.executable, "-c", OWNER, *what)


def check(pid: int, **options: object) -> TreeReport:
    report = torpor.check(pid=pid, manage_cgroups="ignore", **options)  # type: ignore[call-overload]
    assert isinstance(report, TreeReport)
    return report


def codes(report: TreeReport) -> set[str]:
    return {one.code for one in report.obstacles}


def test_what_a_tree_owns(tmp_path: Path) -> None:
    with owner(tmp_path, "child") as victim:
        report = check(victim.pid)
        assert report.ok
        first, second = report.tasks
        assert (first.pid, second.ppid) == (victim.pid, victim.pid)
        assert (first.threads, second.threads, report.threads) == (4, 1, 5)
        assert report.files["fd:inet"] == 1
        assert report.files["fd:pipe"] == 2
        mapped, stored = report.memory["anonymous"]
        assert mapped > stored > 8 << 20
        assert report.image_bytes > stored
        text = "\n".join(report.lines())
        for words in (f"{victim.pid} python", "4 threads", "2 pipe ends", "1 TCP or UDP socket\n", "Can be dumped."):
            assert words in text
        os.kill(second.pid, signal.SIGKILL)


def test_everything_in_the_way_is_named_at_once(tmp_path: Path) -> None:
    with owner(tmp_path, "connected", "gone", "lock") as victim:
        report = check(victim.pid)
        assert not report.ok
        assert codes(report) >= {"unsupported", "ghost-limit", "link-remap", "file-lock"}
        assert sum("it is connected to" in one.why for one in report.obstacles) == 2
        remedies = " ".join(one.remedy for one in report.obstacles)
        assert "--tcp-close" in remedies and "--link-remap" in remedies and "--ghost-limit" in remedies
        allowed = check(victim.pid, tcp_close=True, ghost_limit="4M", link_remap=True)
        assert codes(allowed) == {"file-lock"}


def test_the_session_of_a_shell(tmp_path: Path) -> None:
    with Victim(tmp_path, "sh", "-c", "sleep 1000 & echo $!; wait") as victim:
        child = int(victim.first)
        assert codes(check(child)) == {"shell-job"}
        assert check(child, shell_job=True).ok
        images = tmp_path / "images"
        images.mkdir()
        done = command("dump", "-t", child, "-D", images, "--manage-cgroups=ignore")
        assert done.returncode == 1 and "--shell-job" in done.stderr
        os.kill(child, signal.SIGKILL)


def test_the_session_of_a_daemon_that_forked_twice(tmp_path: Path) -> None:
    with Victim(tmp_path, "sh", "-c", "sleep 1000 & echo $!") as victim:
        child = int(victim.first)
        victim.process.wait()
        try:
            (one,) = check(child).obstacles
            assert one.code == "shell-job" and "which has ended" in one.why
            assert check(child, shell_job=True).ok
        finally:
            os.kill(child, signal.SIGKILL)
            try:
                os.waitpid(child, 0)  # it was given to us: the tests' process adopts orphans
            except ChildProcessError:
                pass


def test_a_task_that_executes_another_program_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    real, seen = own_vdso.read, list[int]()

    def read(pid: int | str, start: int, size: int) -> bytes:
        if pid == victim.pid and not seen:
            seen.append(start)
            (tmp_path / "fifo").write_text("go\n")
            while os.path.basename(os.readlink(f"/proc/{pid}/exe")) != "sleep":
                time.sleep(0.001)
        return real(pid, start, size)

    with Victim(tmp_path, "sh", "-c", f"echo ready; read line < {tmp_path}/fifo; exec sleep 1000") as victim:
        monkeypatch.setattr(own_vdso, "read", read)
        assert check(victim.pid, shell_job=True).ok and seen


def test_foreign_namespaces(tmp_path: Path) -> None:
    with Victim(tmp_path, "unshare", "-niu", "sh", "-c", "echo ready; exec sleep 1000") as victim:
        why = [one.why for one in check(victim.pid).obstacles if one.code == "namespace"]
        assert len(why) == 3
        assert "it lives in another network namespace than Torpor" in why
    with Victim(tmp_path, "unshare", "-p", "sh", "-c", "echo ready; exec sleep 1000") as victim:
        (one,) = check(victim.pid).obstacles
        assert "its children will live in another PID namespace" in one.why


def test_a_task_that_is_traced(tmp_path: Path) -> None:
    with owner(tmp_path) as victim:
        tracer = subprocess.Popen([sys.executable, "-c", f"""
import ctypes, time
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long] * 4
assert libc.ptrace(0x4206, {victim.pid}, 0, 0) == 0
print("ready", flush=True)
time.sleep(1000)"""], stdout=subprocess.PIPE)  # fmt: skip
        assert tracer.stdout is not None
        try:
            tracer.stdout.readline()
            (one,) = check(victim.pid).obstacles
            assert one.code == "traced"
            assert str(tracer.pid) in one.why
        finally:
            tracer.kill()
            tracer.wait()


def test_torpor_itself_and_nobody() -> None:
    assert "own-tree" in codes(check(os.getpid()))
    with pytest.raises(torpor.TaskGone):
        check((1 << 22) - 1)


def test_threads_and_zombies_are_no_roots(tmp_path: Path) -> None:
    ended = os.posix_spawn("/bin/true", ["true"], {})
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
        assert thread.native_id is not None
        for pid, code in ((thread.native_id, "thread"), (ended, "ended")):
            assert code in codes(check(pid))
            with pytest.raises(torpor.UsageError) as caught:
                torpor.dump(pid, tmp_path)
            assert caught.value.code == code
    finally:
        stop.set()
        thread.join()
        os.waitpid(ended, 0)


def test_nothing_is_stopped_or_changed(tmp_path: Path) -> None:
    """Its threads run all the time, and what /proc shows afterwards is what it showed before."""
    with owner(tmp_path, "connected") as victim:
        names = ("status", "maps", "limits", "stat")
        shown = {name: Path(f"/proc/{victim.pid}/{name}").read_bytes() for name in names}
        fds = sorted(os.listdir(f"/proc/{victim.pid}/fd"))
        states, done = set(), threading.Event()

        def watch() -> None:
            while not done.is_set():
                for line in Path(f"/proc/{victim.pid}/status").read_text().splitlines():
                    if line.startswith(("State", "TracerPid")):
                        states.add(line)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(5):
            check(victim.pid)
        done.set()
        watcher.join()
        assert states == {"State:\tS (sleeping)", "TracerPid:\t0"}
        assert sorted(os.listdir(f"/proc/{victim.pid}/fd")) == fds
        for name in ("maps", "limits"):
            assert Path(f"/proc/{victim.pid}/{name}").read_bytes() == shown[name]


def test_the_command(tmp_path: Path) -> None:
    with owner(tmp_path, "connected") as victim:
        done = command("check", "-t", victim.pid, "--manage-cgroups=ignore")
        assert done.returncode == 1
        assert "it is connected to" in done.stdout
        assert done.stdout.endswith("Cannot be dumped as it is.\n")
        done = command("check", "-t", victim.pid, "--manage-cgroups=ignore", "--tcp-close", "--json")
        assert done.returncode == 0
        facts = json.loads(done.stdout)
        assert facts["ok"] and facts["estimate"]["frozen_seconds"] > 0
        assert facts["tasks"][0]["pid"] == victim.pid


MANY = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (6000, 6000))
files = [open("/etc/passwd") for _ in range(5000)]
print("ready", flush=True)
time.sleep(1000)
"""


def test_five_thousand_files_are_quick(tmp_path: Path) -> None:
    with Victim(tmp_path, sys.executable, "-c", MANY) as victim:
        before = time.process_time()
        report = check(victim.pid)
        assert report.ok and report.descriptors > 5000
        assert time.process_time() - before < 0.5 * 1.5  # processor time: the machine may be busy with other things


PIPES = """
import os, time
inside = os.pipe()
without_writer, writer = os.pipe()
os.close(writer)
if os.fork() == 0:
    os.close(inside[0])
    time.sleep(1000)
os.close(inside[1])
print("ready", flush=True)
time.sleep(1000)
"""


def test_pipes_to_others(tmp_path: Path) -> None:
    """Of a pipe inside of the tree, and of one that has no other end, nothing is said; of others, all is said once."""
    with Victim(tmp_path, sys.executable, "-c", PIPES) as victim:
        warnings = check(victim.pid).warnings
        os.killpg(victim.pid, signal.SIGKILL)
        assert warnings == ()
    process = subprocess.Popen(
        [sys.executable, "-c", PIPES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        (warning,) = check(process.pid).warnings
        dumped = command("dump", "-t", process.pid, "-D", tmp_path, "-R")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert dumped.returncode == 0, dumped.stderr
    assert warning.startswith(f"task {process.pid} (python") and "fd 0 (pipe:[" in warning
    assert " and 1 more: somebody outside of the tree holds the other end" in warning
    assert dumped.stderr.count("outside of the tree") == 1 and warning in dumped.stderr


UNREAD = """
import os, socket, time
read, one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
for receiver in read, one, other:
    receiver.bind(("127.0.0.1", 0))
    read.sendto(b"", receiver.getsockname())
read.recv(1)
print("ready", flush=True)
time.sleep(1000)
"""


def test_unread_datagrams(tmp_path: Path) -> None:
    """A restore cannot bring them back: said once, of those sockets that have some, though they are empty."""
    with Victim(tmp_path, sys.executable, "-c", UNREAD) as victim:
        (warning,) = check(victim.pid).warnings
        dumped = command("dump", "-t", victim.pid, "-D", tmp_path, "-R")
    assert dumped.returncode == 0, dumped.stderr
    assert (
        ", fd 4 (socket:[" in warning
        and " and 1 more: datagrams that it has not read yet will be missing after a restore" in warning
    )
    assert dumped.stderr.count("datagrams") == 1 and warning in dumped.stderr


IN_MEMORY = """
import mmap, os, sys, time
read, mapped, gone, too = (os.path.join(sys.argv[1], name) for name in ("read", "mapped", "gone", "too"))
for path in read, mapped, gone, too:
    with open(path, "wb") as file:
        file.write(bytes(8192))
held = open(read, "rb"), open(gone, "r+b"), open(too, "a"), open(os.path.join(sys.argv[1], "null"))
os.unlink(gone)
with open(mapped, "r+b") as file:
    area = mmap.mmap(file.fileno(), 0)
memfd = os.memfd_create("memfd")
os.write(memfd, bytes(8192))
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="no tmpfs")
def test_files_in_memory(tmp_path: Path, on_disk: bool) -> None:
    """Of files with names on a tmpfs, open or mapped, is said once that images do not have their content; of deleted
    ones, which they have, nothing is said, nor of memfds, devices, and files on a disk."""
    with tempfile.TemporaryDirectory(dir=tmp_path if on_disk else "/dev/shm") as files:
        os.mknod(f"{files}/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        with Victim(tmp_path, sys.executable, "-c", IN_MEMORY, files) as victim:
            warnings = check(victim.pid).warnings
            dumped = command("dump", "-t", victim.pid, "-D", tmp_path, "-R")
    assert dumped.returncode == 0, dumped.stderr
    if on_disk:
        assert warnings == () and "memory" not in dumped.stderr
        return
    (warning,) = warnings
    others = (
        " and 2 more files are in memory alone (tmpfs), and their content is not in the images; copy them to a disk"
    )
    for said in warning, dumped.stderr:
        assert said.count("in memory alone") == 1 and others in said
        first = said.partition(others)[0].removeprefix("Warn: ")
        assert first in [f"{files}/{name}" for name in ("read", "mapped", "too")]


DEEP = """
import os, sys, time
name = "d" * 200
for _ in range(30):
    os.mkdir(name)
    os.chdir(name)
kept = open("kept", "w") if sys.argv[1] == "file" else None
if kept:
    os.chdir("/")
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize(("what", "words"), [("file", ", fd 3"), ("directory", ", its working directory")])
def test_a_path_that_the_kernel_cannot_tell(tmp_path: Path, what: str, words: str) -> None:
    """Longer than a page: refused by name, by the check and by the dump."""
    images = tmp_path / "images"
    images.mkdir()
    with Victim(tmp_path, sys.executable, "-c", DEEP, what) as victim:
        obstacles = [str(one) for one in check(victim.pid).obstacles]
        dumped = command("dump", "-t", victim.pid, "-D", images, "-R")
    assert len(obstacles) == 1 and f"{words}: its path is longer than 4,095 bytes" in obstacles[0], obstacles
    assert dumped.returncode == 1 and dumped.stderr == f"torpor: {obstacles[0]}\n", dumped.stderr
