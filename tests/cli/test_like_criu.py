# SPDX-License-Identifier: Apache-2.0
"""CRIU's own command line beside ours: what it takes, what it refuses, and with which exit status."""

import os
import re
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import peer
from torpor.kernel.probe_criu import NAMES
from torpor.options import TABLE

from .conftest import Run

NOBODY = "4194304"
# x86_64, where there is a CRIU to compare with
SYS_POLL, SYS_WAIT4, SYS_RT_SIGTIMEDWAIT, SYS_WAITID = "7", "61", "128", "247"
# What our kernel probes answer differently, and why.
OURS = {
    "mem_dirty_track": "CRIU needs soft-dirty pages; Torpor does not track memory yet",
    "compat_cr": "Torpor does not handle 32-bit programs",
    "uffd": "Torpor has no lazy pages yet",
    "uffd-noncoop": "Torpor has no lazy pages yet",
    "autofs": "CRIU says yes where the kernel has no autofs at all",
    "net_diag_raw": "CRIU says yes where the kernel has no raw_diag at all",
}


@pytest.fixture(scope="session")
def criu() -> str:
    command, why = peer.criu()
    if command is None:
        pytest.skip(f"no peer: {why}")
    return str(command)


def ask(criu: str, where: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HOME": str(where)}
    return subprocess.run(
        [criu, *argv], cwd=where, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, env=environment
    )


def complaint(text: str) -> bool:
    """Is it about the spelling of the command line?"""
    theirs = (
        r"option '.*|requires an (argument|action)|Unknown|[Ii]nvalid (argument|value|option)|excessive|unknown command"
    )
    ours = r"needs? a|there is no (option|command|feature)|could be|not a value|too much|takes no value"
    return bool(re.search(rf"{theirs}|{ours}|--ms is deprecated", text))


@pytest.mark.parametrize(
    "argv",
    [
        "", "frob", "dump", "dump -t 0", "dump -t x", "dump -t", "dump --le", "dump --nonsense", "dump -Z", "check x",
        f"dump -t {NOBODY}", f"-R dump -t{NOBODY}", f"dump --leave-r --tree={NOBODY}", f"dump -vvv -t {NOBODY}",
        f"dump -t {NOBODY} -v4", f"dump -t {NOBODY} --no-shell-job", f"dump -t {NOBODY} --no-leave-running",
        f"dump -t {NOBODY} --manage-cgroups", f"dump -t {NOBODY} --manage-cgroups=Soft", f"dump -t {NOBODY} --ms",
        f"dump -t {NOBODY} --ghost-limit 1M", f"dump -t {NOBODY} --file-validation x", f"dump -t {NOBODY} --port 0",
        f"dump -t {NOBODY} -D nowhere", "restore -D nowhere", "restore -S", "restore", "-h", "--version", "dump --help",
        "cpuinfo", "check --feature nonsense", "check --feature",
    ],
)  # fmt: skip
def test_command_lines(criu: str, torpor: Run, tmp_path: Path, argv: str) -> None:
    theirs, ours = ask(criu, tmp_path, *argv.split()), torpor(*argv.split())
    assert ours.returncode == theirs.returncode
    assert complaint(ours.stderr) == complaint(theirs.stderr), f"{ours.stderr}\n{theirs.stderr}"


def test_option_names(criu: str, tmp_path: Path) -> None:
    """CRIU takes every name that we call CRIU's, and its --no- form exactly where we do."""
    for option in TABLE.values():
        for name, taken in ((option.name, not option.ours), (f"no-{option.name}", option.negatable)):
            argument = "" if option.argument == "flag" or name.startswith("no-") else "=x"
            answer = ask(criu, tmp_path, f"--{name}{argument}", "--version").stderr
            known = "unrecognized option" not in answer
            abbreviated = any(one.negatable and f"no-{one.name}".startswith(name) for one in TABLE.values())
            assert known == (taken or abbreviated), f"--{name}"


def test_short_forms(criu: str, tmp_path: Path) -> None:
    """Every letter that CRIU takes is the short form of an option here, with a value where CRIU's has one."""
    forms = {option.short: option for option in TABLE.values() if option.short}
    for letter in string.ascii_letters:
        said = ask(criu, tmp_path, f"-{letter}").stderr
        assert ("invalid option" not in said) == (letter in forms), f"-{letter}: {said}"
        if letter in forms:
            assert ("requires an argument" in said) == (forms[letter].argument == "value"), f"-{letter}: {said}"


def test_feature_names(criu: str, tmp_path: Path) -> None:
    text = re.search(r"one of:\n(.*?)\n\n", ask(criu, tmp_path, "--help").stdout, re.DOTALL)
    assert text
    assert tuple(re.findall(r"[\w-]+", text[1])) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_features(criu: str, torpor: Run, tmp_path: Path, name: str) -> None:
    theirs, ours = (done.returncode for done in (ask(criu, tmp_path, "check", "--feature", name),
                                                 torpor("check", "--feature", name)))  # fmt: skip
    if theirs != ours:
        assert name in OURS, f"CRIU: {theirs}, Torpor: {ours}"


VICTIM = """
import signal, sys
wanted = [signal.SIGUSR1, signal.SIGUSR2]
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("ready", flush=True)
sys.exit(0 if signal.sigwait(wanted) == signal.SIGUSR1 else 7)
"""


@pytest.mark.parametrize("ending", ["SIGUSR1", "SIGUSR2", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("who", ["criu", "torpor"])
def test_restore_in_the_foreground(request: pytest.FixtureRequest, tmp_path: Path, who: str, ending: str) -> None:
    """It stays until the root ends, ignores SIGTERM and SIGINT meanwhile, and returns 0 however the root ended."""
    command = [request.getfixturevalue("criu")] if who == "criu" else [sys.executable, "-m", "torpor"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"), "HOME": str(tmp_path)}
    images = tmp_path / "images"
    images.mkdir()
    with open(tmp_path / "out", "w") as out:
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    wait_until(lambda: (tmp_path / "out").read_text() == "ready\n")
    try:
        subprocess.run([*command, "dump", "-t", str(victim.pid), "-D", "images"], cwd=tmp_path, check=True, timeout=60,
                       env=environment, capture_output=True)  # fmt: skip
    finally:
        victim.kill()
        victim.wait()
    tool = subprocess.Popen([*command, "restore", "-D", "images"], cwd=tmp_path, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        if who == "torpor":
            assert tool.stdout and tool.stdout.readline().startswith("restored")
        # CRIU also waits for helpers, before there is anything restored.
        wait_until(lambda: tool.poll() is not None or (is_back(victim.pid) and waits_only(tool.pid)))
        for harmless in (signal.SIGTERM, signal.SIGINT):
            tool.send_signal(harmless)
        assert tool.poll() is None
        os.kill(victim.pid, getattr(signal, ending))
        assert tool.wait(10) == 0
        assert not Path(f"/proc/{victim.pid}").exists()
    finally:
        if tool.poll() is None:
            if Path(f"/proc/{victim.pid}").exists():
                os.kill(victim.pid, signal.SIGKILL)
            tool.kill()
            tool.wait()


def waits_only(pid: int) -> bool:
    """Does it wait for a process to end, deaf to signals?"""
    status, call = (Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "syscall"))
    blocked = re.search(r"SigBlk:\s*(\w+)", status)
    deaf = blocked is not None and bool(int(blocked[1], 16) >> (signal.SIGTERM - 1) & 1)
    return deaf and call.split()[0] in (SYS_WAIT4, SYS_WAITID, SYS_POLL)


def is_back(pid: int) -> bool:
    """Is the victim in its sigwait again?"""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == SYS_RT_SIGTIMEDWAIT
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Of what happens in another program and nothing tells: look until it is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
