# SPDX-License-Identifier: Apache-2.0
"""``torpor check -D DIR``: all that is in the way of a restore, at once; nothing is created."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torpor
from check.support import Victim
from check.support import torpor as command
from torpor.check_images import ImagesReport
from torpor.resources import pids

OWNER = """
import os, socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
bound = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
bound.bind(("::", 0))
kept = open("kept", "w+"); kept.write("content"); kept.flush()
if "connected" in sys.argv:
    peer = socket.create_connection(listener.getsockname())
    accepted = listener.accept()
if not os.fork():
    time.sleep(1000)
print("ready", listener.getsockname()[1], bound.getsockname()[1], flush=True)
time.sleep(1000)
"""
OPTIONS = {"manage_cgroups": "ignore"}


class Dumped:
    """A tree of two, dumped; it may run still."""

    def __init__(self, directory: Path, *what: str, **options: object) -> None:
        self.directory = directory
        self.images = directory / "images"
        self.images.mkdir()
        self.victim = Victim(directory, sys.executable, "-c", OWNER, *what)
        _, *ports = self.victim.first.split()
        self.ports = list(map(int, ports))
        child = Path(f"/proc/{self.victim.pid}/task/{self.victim.pid}/children").read_text()
        self.pids = [self.victim.pid, int(child)]
        torpor.dump(self.victim.pid, self.images, leave_running=True, **OPTIONS, **options)  # type: ignore[arg-type]

    def end(self) -> None:
        for pid in reversed(self.pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.victim.process.wait()
        try:
            os.waitpid(self.pids[1], 0)  # it was given to us: the tests' process adopts orphans
        except ChildProcessError:
            pass

    def check(self, **options: object) -> ImagesReport:
        report = torpor.check(images=self.images, **{**OPTIONS, **options})  # type: ignore[call-overload]
        assert isinstance(report, ImagesReport)
        return report


@pytest.fixture
def dumped(tmp_path: Path) -> Iterator[Dumped]:
    it = Dumped(tmp_path)
    try:
        yield it
    finally:
        it.end()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def codes(report: ImagesReport) -> list[str]:
    return [one.code for one in report.obstacles]


def test_can_be_restored(dumped: Dumped) -> None:
    dumped.end()
    report = dumped.check()
    assert report.ok, report.obstacles
    assert [pid for pid, _ in report.tasks] == dumped.pids
    assert report.memory > 1 << 20
    text = "\n".join(report.lines())
    assert f"task {dumped.pids[1]}: child of {dumped.pids[0]}" in text
    assert text.endswith("Can be restored.")
    assert all(map(gone, dumped.pids))


def test_a_dry_run(dumped: Dumped) -> None:
    """By the library, which restored the tree, and by the command, which gave no JSON."""
    dumped.end()
    result = torpor.restore(dumped.images, dry_run=True, manage_cgroups="ignore")
    assert (result.pid, result.tasks) == (dumped.pids[0], len(dumped.pids))
    assert list(result.phases) == ["check"]
    words = ("restore", "-D", dumped.images, "--dry-run", "--manage-cgroups=ignore")
    plan = command(*words).stdout.splitlines()
    assert any(f"task {dumped.pids[1]}: child of {dumped.pids[0]}" in line for line in plan)
    assert json.loads(command(*words, "--json").stdout)["plan"] == plan
    assert all(map(gone, dumped.pids))
    assert not (dumped.images / "stats-restore").exists()


@pytest.mark.parametrize("left", [b"", bytes(60), b"rubbish" * 9])
def test_statistics_lost_by_a_power_failure(dumped: Dumped, left: bytes) -> None:
    """They alone are not synced; a checkpoint is none the worse without them."""
    dumped.end()
    (dumped.images / "stats-dump").write_bytes(left)
    assert dumped.check().ok
    assert command("show", dumped.images).returncode == 0


def test_what_is_taken_is_named_at_once(dumped: Dumped) -> None:
    (dumped.directory / "kept").write_text("other content")
    report = dumped.check()
    assert not report.ok
    assert codes(report).count("pid-taken") == 2
    taken = [one.what for one in report.obstacles if one.code == "port-taken"]
    assert any(f"TCP port {dumped.ports[0]} " in what for what in taken)
    assert any(f"UDP port {dumped.ports[1]} " in what for what in taken)
    assert any("kept" in str(one) for one in report.obstacles)
    assert report.lines()[-1] == "Cannot be restored here and now."


def test_pids_that_are_too_great_here(dumped: Dumped, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a boot kernel.pid_max is low again."""
    dumped.end()
    greatest = max(dumped.pids)
    monkeypatch.setattr(pids, "number_file", lambda path: greatest + 1 if path.endswith("/pid_max") else None)
    assert dumped.check().ok
    monkeypatch.setattr(pids, "number_file", lambda path: greatest if path.endswith("/pid_max") else None)
    (obstacle,) = dumped.check().obstacles
    assert obstacle.code == "pid-max"
    assert f"PID {greatest} cannot be given here" in str(obstacle)
    assert f"sysctl kernel.pid_max={greatest + 1}" in str(obstacle)


def test_a_terminal_whose_number_is_taken(tmp_path: Path) -> None:
    program = "import os, time; ends = os.openpty(); print(os.ttyname(ends[1]), flush=True); time.sleep(1000)"
    with Victim(tmp_path, sys.executable, "-c", program) as victim:
        images = tmp_path / "images"
        images.mkdir()
        torpor.dump(victim.pid, images, leave_running=True, manage_cgroups="ignore")
        report = torpor.check(images=images, manage_cgroups="ignore")
        (one,) = [one for one in report.obstacles if one.code != "pid-taken"]
        assert (one.what, one.why) == (f"the terminal {victim.first}", "its number is in use here")
    report = torpor.check(images=images, manage_cgroups="ignore")
    assert report.ok or os.path.exists(victim.first), report.obstacles  # somebody else's by now


def test_connections_and_jobs(tmp_path: Path) -> None:
    it = Dumped(tmp_path, "connected", tcp_close=True)
    try:
        it.end()
        assert codes(it.check()) == ["tcp-close"]
        assert it.check(tcp_close=True).ok
    finally:
        it.end()


@pytest.mark.parametrize("name", ["core", "mm", "pagemap", "fdinfo", "files.img", "pstree.img", "inventory.img", "ids"])
@pytest.mark.parametrize("how", ["missing", "cut", "noise"])
def test_broken_images(shared: Dumped, tmp_path: Path, name: str, how: str) -> None:
    import shutil

    images = tmp_path / "copy"
    shutil.copytree(shared.images, images)
    path = sorted(images.glob(f"{name}*"))[0]
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if how == "cut" else data[:12] + os.urandom(len(data) - 12))
    report = torpor.check(images=images, manage_cgroups="ignore")
    if name == "ids" and how == "missing":
        return  # its content stands in the core image too
    assert not report.ok
    assert all(one["what"] for one in report.facts()["obstacles"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumped]:
    it = Dumped(tmp_path_factory.mktemp("shared"))
    it.end()
    yield it


def test_no_images(tmp_path: Path) -> None:
    report = torpor.check(images=tmp_path)
    assert not report.ok
    done = command("check", "-D", tmp_path)
    assert done.returncode == 1
    assert "inventory.img" in done.stdout
    done = command("check", "-D", tmp_path / "nowhere")
    assert done.returncode == 1 and "nowhere" in done.stderr


def test_the_command(shared: Dumped) -> None:
    done = command("check", "-D", shared.images, "--manage-cgroups=ignore", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["ok"]
    done = command("check", "-D", shared.images, "--manage-cgroups=ignore")
    assert done.returncode == 0
    assert done.stdout.endswith("Can be restored.\n")
