# SPDX-License-Identifier: Apache-2.0
"""What is said where a run in guests is asked for what it cannot do, before it does anything."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from vmlab import VmError, cache_dir, image, in_cache, jobs, machine

VM = Path(__file__).parent


def words(*arguments: str, **environment: str) -> str:
    """The last words of such a run, which comes to nothing."""
    command = [sys.executable, "-m", "pytest", "-m", "vm", str(VM), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=VM.parents[1], env={**os.environ, **environment}
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    return done.stderr.strip()


def test_nothing_is_chosen() -> None:
    said = words("-k", "test and [z80-")
    assert said.startswith("ERROR: nothing was chosen") and "s390x" in said and "6.12" in said and "\n" not in said


def test_the_cache_is_no_directory() -> None:
    assert words(TORPOR_VM_CACHE="/dev/null").startswith("ERROR: /dev/null/scratch: Not a directory; make room in")


def test_the_number_of_guests_is_none() -> None:
    assert words(TORPOR_VM_JOBS="few").startswith("ERROR: TORPOR_VM_JOBS is 'few'")


@pytest.mark.parametrize(("named", "number"), [("", 2), ("1", 1), ("12", 12)])
def test_numbers_of_guests(monkeypatch: pytest.MonkeyPatch, named: str, number: int) -> None:
    monkeypatch.setenv("TORPOR_VM_JOBS", named)
    assert jobs() == number


@pytest.mark.parametrize("named", ["0", "-1", "x", "1.5", "\u0662"])
def test_no_numbers_of_guests(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("TORPOR_VM_JOBS", named)
    with pytest.raises(VmError, match="TORPOR_VM_JOBS"):
        jobs()


def test_the_cache_has_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORPOR_VM_CACHE", "here")
    assert cache_dir() == tmp_path / "here"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device; make room in"),
        (subprocess.CalledProcessError(2, ["tar", "-x"]), "tar has failed with 2; make room in"),
    ],
)
def test_no_room(error: Exception, said: str) -> None:
    with pytest.raises(VmError, match=said), in_cache():
        raise error


def test_an_image_is_named_when_it_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its name says that it is made; a disk that is full when that is written leaves none."""

    def write_text(path: Path, text: str) -> None:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space left"):
        image._name(tmp_path / "linux.name", "linux-image-6.12")
    assert not (tmp_path / "linux.name").exists()


def test_what_a_killed_run_leaves_is_removed_by_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORPOR_VM_CACHE", str(tmp_path))
    program = "import os; from vmlab import machine; machine._kept(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program], cwd=VM).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "scratch").glob("packed-*"))) == 1
    with machine.scratch_directory("next-") as own:
        assert [path for path in own.parent.iterdir() if path.is_dir()] == [own]
