# SPDX-License-Identifier: Apache-2.0
"""The freeze is rehearsed with a child of the engine's own: nothing of that is left, and nothing depends on it."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import torpor
from harness.events import children_of, wait_end
from torpor import dump_collect, rehearsal
from torpor.engine import journal
from torpor.engine.waiting import check_cancelled
from torpor.errors import DumpFailed, Refusal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Deed = Callable[[int], None]


@pytest.fixture
def victim() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Deed], Path]:
    """Have something done at the end of each rehearsal, with the child's PID, which is written to a file before."""
    seen = tmp_path / "seen"
    perform = rehearsal._perform

    def use(deed: Deed) -> Path:
        def performed(dump: rehearsal.Dump, pid: int) -> None:
            perform(dump, pid)
            with open(seen, "a") as file:
                file.write(f"{pid}\n")
            deed(pid)

        monkeypatch.setattr(rehearsal, "_perform", performed)
        return seen

    return use


def dump(pid: int, images: Path, leave_running: bool = True) -> None:
    images.mkdir()
    torpor.dump(pid, images, leave_running=leave_running, manage_cgroups="ignore")


def is_unharmed(pid: int) -> bool:
    """Nobody traces it, and it is not stopped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return "TracerPid:\t0\n" in status and "State:\tT" not in status and "State:\tt" not in status


def test_once_for_a_tree_that_goes_on(rehearsed: Callable[[Deed], Path], victim: int, tmp_path: Path) -> None:
    seen, before = rehearsed(lambda pid: None), children_of(os.getpid())
    dump(victim, tmp_path / "images")
    (pid,) = map(int, seen.read_text().split())
    assert not os.path.exists(f"/proc/{pid}") and is_unharmed(victim) and children_of(os.getpid()) == before
    kept = {path.name for path in (tmp_path / "images").iterdir()}
    assert [name for name in kept if str(pid) in name] == [] and f"core-{victim}.img" in kept


def test_the_child_inherits_nothing(rehearsed: Callable[[Deed], Path], victim: int, tmp_path: Path) -> None:
    """What belongs to another task cannot be dumped."""
    seen = rehearsed(lambda pid: None)
    fd = os.open(f"/proc/{victim}/mem", os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        dump(victim, tmp_path / "images")
    finally:
        os.close(fd)
    assert seen.exists()


def test_not_for_one_that_ends(rehearsed: Callable[[Deed], Path], victim: int, tmp_path: Path) -> None:
    seen = rehearsed(lambda pid: None)
    dump(victim, tmp_path / "images", leave_running=False)
    assert not seen.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Refusal("task 1", "no"), DumpFailed("no")])
def test_what_fails_is_nothing_to_the_dump(
    rehearsed: Callable[[Deed], Path], victim: int, tmp_path: Path, error: Exception
) -> None:
    def fail(pid: int) -> None:
        raise error

    seen = rehearsed(fail)
    dump(victim, tmp_path / "images")
    assert not os.path.exists(f"/proc/{seen.read_text().strip()}") and is_unharmed(victim)


def test_a_refusal_half_way(monkeypatch: pytest.MonkeyPatch, victim: int, tmp_path: Path) -> None:
    """While the child is frozen: it is let go, and ended, before the tree is looked at."""
    seen, areas = tmp_path / "seen", dump_collect.areas

    def refuse(dump: rehearsal.Dump) -> object:
        if isinstance(dump, rehearsal._Rehearsal):
            seen.write_text(str(*dump.tasks))
            raise Refusal("task 1", "no")
        return areas(dump)

    monkeypatch.setattr(dump_collect, "areas", refuse)
    dump(victim, tmp_path / "images")
    assert not os.path.exists(f"/proc/{seen.read_text()}") and is_unharmed(victim)


def test_without_the_program(monkeypatch: pytest.MonkeyPatch, victim: int, tmp_path: Path) -> None:
    monkeypatch.setattr(rehearsal, "PROGRAM", ("/nowhere/sleep", "10"))
    dump(victim, tmp_path / "images")
    assert is_unharmed(victim)


def test_cancelled(rehearsed: Callable[[Deed], Path], victim: int, tmp_path: Path) -> None:
    def cancel(pid: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        check_cancelled()

    seen = rehearsed(cancel)
    with pytest.raises(torpor.TorporError, match="interrupted"):
        dump(victim, tmp_path / "images")
    assert not os.path.exists(f"/proc/{seen.read_text().strip()}") and is_unharmed(victim)
    assert list((tmp_path / "images").iterdir()) == []


def test_killed(monkeypatch: pytest.MonkeyPatch, victim: int, tmp_path: Path) -> None:
    """The engine, while its child is frozen: that ends with it."""
    seen = tmp_path / "seen"

    def kill(dump: rehearsal.Dump) -> None:
        seen.write_text(str(*dump.tasks))
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(dump_collect, "areas", kill)
    with pytest.raises(torpor.TorporError):
        dump(victim, tmp_path / "images")
    assert is_unharmed(victim)
    assert wait_end(int(seen.read_text()), 20) == signal.SIGKILL  # it has become ours


def test_a_journal_that_is_set_aside_is_kept() -> None:
    journal.open_journal()
    try:
        journal.note("seizing", 1)
        kept = journal.set_aside()
        journal.note("seizing", 2)
        assert list(journal.records()) == [("seizing", 2)]
        journal.take_up(kept)
        assert list(journal.records()) == [("seizing", 1)]
        journal.note("halted", 1)
        assert list(journal.records()) == [("seizing", 1), ("halted", 1)]
    finally:
        journal.close_journal()
