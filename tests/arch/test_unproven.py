# SPDX-License-Identifier: Apache-2.0
"""Registers that no machine at hand has, nor QEMU: what Torpor does with them is tried on others that this one has."""

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

import torpor
from torpor import dump_collect, rehearsal
from torpor.arch import native
from torpor.errors import Refusal
from torpor.images import kinds
from torpor.images.directory import ImageReader
from torpor.kernel import ptrace
from torpor.kernel.procfs import read_all

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

UNPROVEN = {native().regsets[0]: "what was put there"}


@pytest.fixture(autouse=True)
def _nothing_is_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put in a register's place here is for the victim alone."""
    monkeypatch.setattr(rehearsal, "PROGRAM", ("/nowhere/sleep",))


@pytest.fixture
def images(tmp_path: Path) -> tuple[int, Path]:
    """Of a process that has ended."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL) as victim:
        torpor.dump(victim.pid, tmp_path, manage_cgroups="ignore")
    return victim.pid, tmp_path


def restore(images: Path) -> int:
    return torpor.restore(images, restore_sibling=True, manage_cgroups="ignore").pid


def test_they_are_restored(monkeypatch: pytest.MonkeyPatch, images: tuple[int, Path]) -> None:
    monkeypatch.setattr(native(), "unproven", UNPROVEN)
    pid = restore(images[1])
    assert pid == images[0]
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)


def test_a_restore_that_finds_others_is_undone(monkeypatch: pytest.MonkeyPatch, images: tuple[int, Path]) -> None:
    read = ptrace.get_regset
    (which,) = UNPROVEN

    def get_regset(tid: int, number: int) -> bytes:
        found = read(tid, number)
        return found[:-1] + bytes([found[-1] ^ 1]) if number == which else found

    monkeypatch.setattr(native(), "unproven", UNPROVEN)
    monkeypatch.setattr(ptrace, "get_regset", get_regset)
    with pytest.raises(Refusal, match="what was put there is not as it was"):
        restore(images[1])
    assert not os.path.exists(f"/proc/{images[0]}")


def test_a_machine_without_them_is_named(monkeypatch: pytest.MonkeyPatch, images: tuple[int, Path]) -> None:
    write = ptrace.set_regset
    (which,) = UNPROVEN

    def set_regset(tid: int, number: int, data: bytes) -> None:
        if number == which:
            raise OSError(19, "No such device")
        write(tid, number, data)

    monkeypatch.setattr(native(), "unproven", UNPROVEN)
    monkeypatch.setattr(ptrace, "set_regset", set_regset)
    with pytest.raises(Refusal, match="uses what was put there, which this machine does not take: No such device"):
        restore(images[1])
    assert not os.path.exists(f"/proc/{images[0]}")


SPINNER = "import os\nos.write(1, b'.')\nwhile True: pass"


@pytest.mark.parametrize("ends", [True, False])
def test_a_transaction_fails_before_anything_is_run_inside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: bool
) -> None:
    """A thread is taken for one in a transaction: until it has left the instruction where it was stopped, or always."""
    seen = tmp_path / "seen"

    def in_transaction(general: bytes) -> bool:
        at = f"{native().pc(general):x} "
        with seen.open("a+") as file:
            file.write(at)
            file.seek(0)
            return not ends or file.read(len(at)) == at

    monkeypatch.setattr(native(), "in_transaction", in_transaction)
    (tmp_path / "images").mkdir()
    reader, writer = os.pipe()
    command = ["/usr/bin/python3", "-c", SPINNER]
    victim = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=writer)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"."
        torpor.dump(victim.pid, tmp_path / "images", leave_running=True, manage_cgroups="ignore")
        looks = seen.read_text().split()
        if ends:
            assert looks[-1] != looks[0] and set(looks[:-1]) == {looks[0]} and len(looks) > 1
        else:
            assert len(looks) > 100 and len(set(looks)) > 10  # as many as a second allows
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
        os.close(reader)


HANDLER = """if True:
    import os, signal
    for number in signal.SIGUSR1, signal.SIGTRAP:
        signal.signal(number, lambda *_: os.write(1, b"H"))
    os.write(1, b".")
    while True: pass
"""


@pytest.mark.parametrize("what", ["a transaction", "the vDSO"])
def test_a_signal_that_is_delivered_on_the_way_is_pending_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    """It comes before the thread's status is read, and is delivered by the first step."""
    sent = tmp_path / "sent"
    said = os.open(tmp_path / "said", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    victim = subprocess.Popen(
        ["/usr/bin/python3", "-c", HANDLER], start_new_session=True, stdin=subprocess.DEVNULL, stdout=said
    )
    looks: list[bytes] = []

    def in_transaction(general: bytes) -> bool:
        looks.append(general)
        return len(looks) < 300

    def read_status(path: str, *more: int) -> bytes:
        if path.endswith("/status") and not sent.exists():
            sent.touch()
            os.kill(victim.pid, signal.SIGUSR1)
        return read_all(path, *more)

    if what == "the vDSO":
        monkeypatch.setattr(dump_collect, "_inside", lambda text: in_transaction)
    else:
        monkeypatch.setattr(native(), "in_transaction", in_transaction)
    monkeypatch.setattr(dump_collect, "read_all", read_status)
    while not os.pread(said, 1, 0):
        time.sleep(0.001)
    (tmp_path / "images").mkdir()
    torpor.dump(victim.pid, tmp_path / "images", manage_cgroups="ignore")
    victim.wait()
    monkeypatch.undo()
    with ImageReader.open(str(tmp_path / "images")) as images:
        core = images.one(kinds.CORE, victim.pid)
    os.close(said)
    assert sent.exists() and core.tc is not None and core.thread_core is not None
    assert not core.tc.signals_s.signals and not core.thread_core.signals_p.signals


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTRAP])
@pytest.mark.parametrize("look", [1, 5])
def test_a_signal_that_comes_on_the_way_is_delivered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, look: int
) -> None:
    """Before the first of five steps, or before the last.  A step is told by a SIGTRAP, too, but by the kernel's."""
    looks: list[bytes] = []
    reader, writer = os.pipe()
    victim = subprocess.Popen(
        ["/usr/bin/python3", "-c", HANDLER], start_new_session=True, stdin=subprocess.DEVNULL, stdout=writer
    )
    os.close(writer)
    seen = tmp_path / "seen"

    def in_transaction(general: bytes) -> bool:
        looks.append(general)
        seen.write_text(str(len(looks)))
        if len(looks) == look:
            os.kill(victim.pid, number)
        return True

    monkeypatch.setattr(native(), "in_transaction", in_transaction)
    monkeypatch.setattr(dump_collect, "STEPS", 5)
    (tmp_path / "images").mkdir()
    try:
        assert os.read(reader, 1) == b"."
        torpor.dump(victim.pid, tmp_path / "images", leave_running=True, manage_cgroups="ignore")
        assert int(seen.read_text()) >= look
        assert select.select([reader], [], [], 20)[0] and os.read(reader, 1) == b"H"
    finally:
        victim.kill()
        victim.wait()
        os.close(reader)
