# SPDX-License-Identifier: Apache-2.0
"""What is said where a run in guests is asked for what it cannot do, before it does anything."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_update import UPDATES
from vmlab import VmError, cache_dir, in_cache, jobs, machine
from vmlab.choice import asked_for
from vmlab.targets import TARGETS, target_named

VM = Path(__file__).parent
FEW = ("test_update.py", "test_power.py", "test_exercised_registers.py")  # all thousands take seconds to collect


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", "-m", "vm", *(str(VM / file) for file in FEW), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=VM.parents[1], env={**os.environ, **environment}
    )


def words(*arguments: str, **environment: str) -> str:
    """The last words of such a run, which comes to nothing."""
    done = run(*arguments, **environment)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    said = done.stderr.strip()
    assert "\n" not in said
    return said


def chosen(*arguments: str) -> set[str]:
    """The tests that such a run would be of."""
    done = run("--collect-only", "-q", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.rpartition("::")[2] for line in done.stdout.splitlines() if "::" in line}


def test_tests_are_of_the_guests_that_they_boot() -> None:
    assert chosen("--kernel", "6.12", "-k", "power") == {"test_power", "test_power_without_fsync"}
    assert chosen("--arch", "armv7", "--kernel", "6.1", "-k", "update or registers") == {
        "test_update[arm-there_and_back]",
        "test_update_stacks[arm]",
        "test_register_sets[arm-6.1-registers]",
    }
    assert chosen("--kernel", "6.12-64k") == {"test_update[ppc64le-there_and_back]"}
    assert chosen("--kernel", "6.1", "-k", "there and not arm") == {
        f"test_update[{arch}-{way}]" for arch, way in UPDATES if arch != "arm"
    }


def test_guests_are_asked_for_with_exceptions() -> None:
    found = chosen("-m", "vm and not vm_subset")
    assert {"test_power", "test_update[arm-there_and_back]"} < found
    assert "test_register_sets[arm-6.1-registers]" not in found


@pytest.mark.parametrize(
    ("marks", "asked"),
    [
        ("(vm)and not(vm_subset or slow)", ["vm"]),
        ("vm_subset and not slow or other", ["vm_subset", "other"]),
        ("not vm_subset and not (vm or slow)", []),
        ("not vm", []),
        ("", []),
    ],
)
def test_what_is_asked_for(marks: str, asked: list[str]) -> None:
    assert asked_for(marks) == asked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arch", "z80"), "there is no architecture z80; there are x86_64, aarch64, arm, ppc64le, s390x"),
        (("--kernel", "6"), "there is no kernel 6; there are 6.1, 6.12, 6.12-64k"),
        (("--arch", "arm64", "--kernel", "6.12-64k"), "no test boots aarch64 6.12-64k"),
        (("--kernel", "6.1", "-k", "update or power"), "the tests called power do not boot 6.1, but x86_64 6.12"),
        (("-k", "update or updaet"), "no test that runs in a guest is called updaet"),
        (("-k", "update and power"), "nothing was chosen that runs in a guest; "),
    ],
)
def test_what_is_not_chosen_is_said(arguments: tuple[str, ...], said: str) -> None:
    assert words(*arguments).startswith(f"ERROR: {said}")


def test_a_test_says_which_guests_it_boots(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.vm\ndef test_it() -> None: pass\n")
    said = words(str(tmp_path / "test_it.py"))
    assert "::test_it does not say which guests it boots" in said


@pytest.mark.parametrize("name", ["amd64", "arm64", "armhf", "armv7", "armv7l", "ppc64el", *TARGETS])
def test_names_of_architectures(name: str) -> None:
    own = {"amd64": "x86_64", "arm64": "aarch64", "armhf": "arm", "armv7": "arm", "armv7l": "arm", "ppc64el": "ppc64le"}
    assert target_named(name).arch == own.get(name, name)


def test_the_cache_is_no_directory() -> None:
    assert words(TORPOR_VM_CACHE="/dev/null").startswith(
        "ERROR: /dev/null/scratch: Not a directory; the cache is /dev/null; name another directory in TORPOR_VM_CACHE"
    )


@pytest.mark.parametrize("setting", ["TORPOR_VM_JOBS", "TORPOR_VM_CPUS", "TORPOR_POWER_FAILURES", "TORPOR_POWER_SEED"])
def test_a_setting_is_no_number(setting: str) -> None:
    assert words(**{setting: "few"}).startswith(f"ERROR: {setting} is 'few'")


def test_there_is_no_such_mode() -> None:
    assert words(TORPOR_MODES="both,bogus").startswith("ERROR: TORPOR_MODES: no mode bogus; there are plain, restore,")


def test_all_programs_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "depmod").symlink_to("/bin/true")
    said = words("-k", "power or (registers and arm)", PATH=str(tmp_path))
    assert said.endswith("apt-get install --no-install-recommends apt dpkg qemu-system-arm qemu-system-x86 util-linux")


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
        (
            OSError(28, "No space left on device", "/x"),
            "/x: No space left on device; make room in HERE, or name another",
        ),
        (
            OSError(2, "No such file or directory", "/x"),
            "/x: No such file or directory; the cache is HERE; name another",
        ),
        (subprocess.CalledProcessError(2, ["tar"]), "tar has failed with 2; the cache is HERE; name another"),
        (
            subprocess.CalledProcessError(2, ["tar"], stderr="tar: what?\n"),
            "tar has failed with 2: tar: what?; the cache is HERE; name another",
        ),
    ],
)
def test_what_cannot_be_made(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORPOR_VM_CACHE", str(tmp_path))
    with pytest.raises(VmError) as raised, in_cache():
        raise error
    assert str(raised.value) == f"{said.replace('HERE', str(tmp_path))} directory in TORPOR_VM_CACHE"


def test_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORPOR_VM_CACHE", str(tmp_path))
    monkeypatch.setattr("vmlab.ROOM", 1 << 60)
    with pytest.raises(VmError, match="tar has failed with 2; make room in"), in_cache():
        raise subprocess.CalledProcessError(2, ["tar"])


def test_what_a_killed_run_leaves_is_removed_by_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORPOR_VM_CACHE", str(tmp_path))
    program = "import os; from vmlab import machine; machine._kept(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program], cwd=VM).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "scratch").glob("packed-*"))) == 1
    with machine.scratch_directory("next-") as own:
        assert [path for path in own.parent.iterdir() if path.is_dir()] == [own]
