# SPDX-License-Identifier: Apache-2.0
"""The workloads of tests/workloads inside a guest: a case is NAME-MODE, as in tests/test_workloads.py.

Torpor and the harness are imported once; every case, and every dump and restore in it, is a fork of this process.  The
case `command_line` is the real command, with its own start of Python.  The programs were built outside, for this
architecture and the C library that lies beside them (vmlab/programs.py).

Most are run in crowds (harness/crowd.py), several in one tree.
"""

import contextlib
import fcntl
import gc
import os
import resource
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import refused

from harness import warm
from harness.crowd import Crowd
from harness.crowd import groups as crowds
from harness.events import become_subreaper
from harness.modes import MODES, run_case
from harness.tools import TORPOR, TORPOR_WARM, Tool
from harness.workload import DIRECTORY, Skipped, Workload

CASE_SECONDS = 600  # for a crowd on a busy machine
CROWD = 70
BY_THEMSELVES = ("command_line",)


def _prepare() -> None:
    """The machine as a booted system would have it: the loopback interface, limits, a directory for everybody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        name = b"lo".ljust(16, b"\0")
        fcntl.ioctl(anything, 0x8914, struct.pack("16sh14x", name, 0x1 | 0x40))  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1048576))
    os.chmod("/tmp", 0o1777)
    if not os.path.exists("/bin/true"):
        os.symlink("/bin/busybox", "/bin/true")
    # Which address it was, say; and sessions do not share the processor as equals, whatever their threads' nice values.
    for switch, value in {
        "kernel/print-fatal-signals": "1", "debug/exception-trace": "1", "kernel/sched_autogroup_enabled": "0",
    }.items():  # fmt: skip
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/sys", switch).write_text(value)
    os.environ.update(TMPDIR="/tmp", TORPOR_WORKLOADS="/torpor/programs", WL_FEWER="yes")


def workload_of(name: str) -> Workload:
    path = next(path for path in (DIRECTORY / f"{name}.c", DIRECTORY / f"{name}.py") if path.exists())
    workload = Workload(path)
    workload.refused = workload.refused or refused.here(name, path.read_text())
    return workload


def run(name: str, mode: str, tool: Tool) -> None:
    """One workload through one mode."""
    workload = workload_of(name)
    try:
        with _place() as (directory, _):
            run_case(workload, MODES[mode], {"torpor": tool}, directory)
            if workload.refused:
                print("refused:", workload.refused)
            for out in directory.glob("try*/home/out"):
                print(_exercised(out.read_text().splitlines()))
    except Skipped as why:
        print(f"cannot run here: {why}")
        sys.exit(77)


def together(cases: list[str]) -> dict[str, tuple[str, str]]:
    """Several workloads through one mode, in one tree: the outcome and the output of each case."""
    names, mode = [case.partition("-")[0] for case in cases], cases[0].partition("-")[2]
    crowd = Crowd([workload_of(name) for name in names])
    with _place() as (directory, images):
        run_case(crowd, MODES[mode], {"torpor": TORPOR_WARM}, directory, images)
    passed = {name: ("passed", _exercised(lines)) for name, lines in crowd.said.items()}
    skipped = {name: ("skipped", f"cannot run here: {why}") for name, why in crowd.skipped.items()}
    return {case: (passed | skipped)[name] for case, name in zip(cases, names, strict=True)}


def groups(cases: list[str]) -> list[list[str]]:
    """What is run together, those by themselves last: they take most memory."""
    alone, found = [], []
    modes: dict[str, list[Workload]] = {}
    for case in cases:
        name, _, mode = case.partition("-")
        if name in BY_THEMSELVES:
            alone.append([case])
        else:
            modes.setdefault(mode, []).append(workload_of(name))
    for mode, workloads in modes.items():
        found += [[f"{workload.name}-{mode}" for workload in group] for group in crowds(workloads, CROWD)]
    return found + alone


@contextlib.contextmanager
def _place() -> Iterator[tuple[Path, Path]]:
    """A directory for a case, and one in memory for the images of a crowd: hundreds of small files, each made and
    synced.  (Those that are run by themselves are too large for that.)  Where a case fails, what the kernel says
    meanwhile."""
    become_subreaper()
    messages = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(messages, 0, os.SEEK_END)
    directory = Path(tempfile.mkdtemp(prefix="case-"))
    directory.chmod(0o755)
    images = Path(tempfile.mkdtemp(prefix="images-", dir="/run"))
    try:
        yield directory, images
    except Skipped:
        raise
    except BaseException:
        with contextlib.suppress(BlockingIOError):
            while line := os.read(messages, 8192):
                print("kernel:", line.decode(errors="replace").partition(";")[2].rstrip())
        raise
    finally:
        for one in (directory, images):
            shutil.rmtree(one, ignore_errors=True)


def _exercised(lines: list[str]) -> str:
    return "\n".join(line for line in lines if line.startswith("exercised: "))


class _Cases(dict[str, Callable[[], None]]):
    def __missing__(self, case: str) -> Callable[[], None]:
        name, _, mode = case.partition("-")
        if name == "command_line":
            return lambda: run("fd_pipe", "restore", TORPOR)
        return lambda: run(name, mode, TORPOR_WARM)


CASES = _Cases()
GROUPS, TOGETHER = groups, together
_prepare()
warm.import_all()
# A case is a process that ends soon, as each command is: no collection in it walks over what all of them share, which
# would copy it.
gc.disable()
