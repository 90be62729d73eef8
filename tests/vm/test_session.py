# SPDX-License-Identifier: Apache-2.0
"""What becomes of the cases when a guest dies, without a guest: vmlab/session.py with a machine that is made up."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from vmlab import machine, session
from vmlab.session import Boot, Guests, Key

KEY = Key("s390x", "6.12", "injection")
Made = Callable[[list[str], Callable[[dict[str, Any]], object]], set[str]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Made], list[list[str]]]:
    """Set what guests do: given their cases, and whom to tell of results, they return what they were at when they died.
    The answer is the list of boots, each with its cases."""
    monkeypatch.setattr(session, "cache_dir", lambda: tmp_path)

    def use(guest: Made, output: str = "console") -> list[list[str]]:
        boots: list[list[str]] = []

        def run(_target: object, _version: str, argv: Sequence[str], **more: Any) -> machine.Outcome:
            cases = [word for word in argv[1:] if word not in ("--", "injection", "scalable")]
            boots.append(cases)
            results: list[dict[str, Any]] = []

            def heard(result: dict[str, Any]) -> None:
                results.append(result)
                more["heard"](result)

            dead = guest(cases, heard)
            return machine.Outcome(None if dead else 0, results, output, 1.0, 1.0, frozenset(dead))

        monkeypatch.setattr(machine, "run", run)
        return boots

    return use


def boot_of(*cases: str) -> Boot:
    boot = Boot(KEY.boot)
    boot.cases = dict.fromkeys(cases, KEY)
    return boot


def passed(case: str) -> dict[str, Any]:
    return {"case": case, "outcome": "passed", "output": ""}


def test_a_dying_guest_costs_its_case_only(made: Any) -> None:
    def guest(cases: list[str], heard: Callable[[dict[str, Any]], object]) -> set[str]:
        for case in cases:
            if case == "deadly":
                return {case}
            heard(passed(case))
        return set()

    boots = made(guest)
    boot = boot_of("a", "deadly", "b", "c")
    found = boot.run()
    assert {case: result["outcome"] for case, result in found.items()} == {
        "a": "passed", "deadly": "failed", "b": "passed", "c": "passed",
    }  # fmt: skip
    assert "console" in found["deadly"]["output"]
    assert boots == [["a", "deadly", "b", "c"], ["b", "c"]]
    assert json.loads(KEY.file.read_text()) == found


def test_of_several_at_once_the_guilty_one_is_found(made: Any) -> None:
    def guest(cases: list[str], heard: Callable[[dict[str, Any]], object]) -> set[str]:
        if "deadly" in cases:
            return set(cases[:3])
        for case in cases:
            heard(passed(case))
        return set()

    boots = made(guest)
    found = boot_of("a", "deadly", "b", "c").run()
    assert {case for case, result in found.items() if result["outcome"] == "failed"} == {"deadly"}
    assert boots == [["a", "deadly", "b", "c"], ["c"], ["a"], ["deadly"], ["b"]]


def test_a_guest_that_never_comes_to_a_case(made: Any) -> None:
    boots = made(lambda cases, heard: set())
    found = boot_of("a", "b").run()
    assert {result["outcome"] for result in found.values()} == {"failed"}
    assert len(boots) == 1


def test_what_a_kernel_says_of_harm_is_told(made: Any) -> None:
    """The case passes, but whoever reads the summary has to know."""

    def guest(cases: list[str], heard: Callable[[dict[str, Any]], object]) -> set[str]:
        heard(passed(cases[0]))
        return set()

    boots = made(guest, "@@HARM BUG: scheduling while atomic\nconsole")
    boot = boot_of("a", "b")
    assert len(boot.run()) == len(boots) == 2
    assert str(boot).endswith("; the kernel said: BUG: scheduling while atomic; BUG: scheduling while atomic")


def test_modules_share_a_boot_and_each_end_is_told(made: Any) -> None:
    def guest(cases: list[str], heard: Callable[[dict[str, Any]], object]) -> set[str]:
        for case in cases:
            heard(passed(case))
        return set()

    boots = made(guest)
    told: list[str] = []
    other = KEY._replace(module="scalable")
    guests = Guests([(KEY, "a"), (other, "b"), (KEY, "a")], told.append)
    assert guests.result(other, "b")["outcome"] == "passed"
    guests.tell()
    assert boots == [["a", "b"]]
    assert [line.partition(" in ")[0] for line in told] == [
        "s390x 6.12, injection, scalable: 2 passed, 0 skipped, 0 failed"
    ]
    assert other.file.exists() and KEY.file.exists()
    with pytest.raises(ValueError, match="both have a case a"):
        Guests([(KEY, "a"), (other, "a")], told.append)


def test_a_place_is_kept_for_tests_with_guests_of_their_own(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_VM_JOBS", "2")
    begun, goes_on = threading.Semaphore(0), threading.Event()

    def guest(cases: list[str], heard: Callable[[dict[str, Any]], object]) -> set[str]:
        begun.release()
        assert goes_on.wait(30)
        for case in cases:
            heard(passed(case))
        return set()

    made(guest)
    guests = Guests([(KEY, "a"), (KEY._replace(kernel="6.1"), "a")], lambda line: None, reserved=True)
    assert begun.acquire(timeout=30)
    assert not begun.acquire(timeout=0.2)
    guests.take_all()
    assert begun.acquire(timeout=30)
    goes_on.set()
    assert guests.result(KEY, "a")["outcome"] == "passed"


@pytest.mark.parametrize(
    ("cpu", "setting", "processors", "named"),
    [
        ("", "", 1, "s390x-6.12-injection"),
        ("", "3", 3, "s390x-6.12-injection-all_with_3_processors"),
        (session.TWO, "", 2, "s390x-6.12-injection-two_processors"),
    ],
    ids=["usually", "where_it_is_set", "where_a_case_asks"],
)
def test_guests_with_several_processors(
    monkeypatch: pytest.MonkeyPatch, cpu: str, setting: str, processors: int, named: str
) -> None:
    monkeypatch.setenv("TORPOR_VM_CPUS", setting)
    monkeypatch.setattr(machine.image, "prepare", lambda *_: machine.image.Image(Path("kernel"), "6.12", ()))
    monkeypatch.setattr(machine, "_executor", lambda target: machine._PROJECT / "executor")
    monkeypatch.setattr(machine, "_overlay", lambda *_: [])
    commands: list[Sequence[str]] = []

    def start(command: Sequence[str]) -> object:
        commands.append(command)
        raise machine.VmError("that is enough")

    monkeypatch.setattr(machine.running, "start", start)
    boot = boot_of()
    boot.key = KEY._replace(cpu=cpu)
    with pytest.raises(machine.VmError, match="that is enough"):
        boot._boot([], {})
    (command,) = commands
    assert command[command.index("-smp") + 1] == str(processors)
    assert [command.count(word) for word in ("-smp", "-cpu")] == [1, 1]
    assert boot.key.file.stem == named


def test_what_a_guest_was_at_when_it_died() -> None:
    said = ("@@READY 6.12 1.0", "@@BEGIN a", "@@BEGIN b", '@@RESULT {"case": "a", "together": 2}', "@@BEGIN c")
    with subprocess.Popen(["printf", "%s\n", *said], stdout=subprocess.PIPE) as qemu:
        outcome = machine._listen(qemu, time.monotonic(), 10, None, None)
    assert outcome.unfinished == {"b", "c"}
    assert outcome.status is None and [result["case"] for result in outcome.results] == ["a"]
