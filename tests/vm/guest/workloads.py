# SPDX-License-Identifier: Apache-2.0
"""The workloads of tests/workloads inside a guest: a case is NAME-MODE, as in tests/test_workloads.py.

Torpor and the harness are imported once; every case, and every dump and restore in it, is a fork of this process.  The
case `command_line` is the real command, with its own start of Python.  The programs were built outside, for this
architecture and the C library that lies beside them (vmlab/programs.py).
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
from collections.abc import Callable
from pathlib import Path

import refused

from harness import warm
from harness.events import become_subreaper
from harness.modes import MODES, run_case
from harness.tools import TORPOR, TORPOR_WARM, Tool
from harness.workload import DIRECTORY, Skipped, Workload

CASE_SECONDS = 220


def _prepare() -> None:
    """The machine as a booted system would have it: the loopback interface, limits, a directory for everybody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        name = b"lo".ljust(16, b"\0")
        fcntl.ioctl(anything, 0x8914, struct.pack("16sh14x", name, 0x1 | 0x40))  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1048576))
    os.chmod("/tmp", 0o1777)
    if not os.path.exists("/bin/true"):
        os.symlink("/bin/busybox", "/bin/true")
    for switch in ("kernel/print-fatal-signals", "debug/exception-trace"):  # which address it was, say
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/sys", switch).write_text("1")
    os.environ.update(TMPDIR="/tmp", TORPOR_WORKLOADS="/torpor/programs", WL_FEWER="yes")


def run(name: str, mode: str, tool: Tool) -> None:
    """One workload through one mode."""
    become_subreaper()
    path = next(path for path in (DIRECTORY / f"{name}.c", DIRECTORY / f"{name}.py") if path.exists())
    messages = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(messages, 0, os.SEEK_END)
    directory = Path(tempfile.mkdtemp(prefix="case-"))
    directory.chmod(0o755)
    try:
        workload = Workload(path)
        workload.refused = workload.refused or refused.here(name, path.read_text())
        if workload.refused:
            print("refused:", workload.refused)
        run_case(workload, MODES[mode], {"torpor": tool}, directory / "case")
        for out in directory.glob("case/try*/home/out"):
            print("\n".join(line for line in out.read_text().splitlines() if line.startswith("exercised: ")))
    except Skipped as why:
        print(f"cannot run here: {why}")
        sys.exit(77)
    except BaseException:
        with contextlib.suppress(BlockingIOError):
            while line := os.read(messages, 8192):
                print("kernel:", line.decode(errors="replace").partition(";")[2].rstrip())
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Cases(dict[str, Callable[[], None]]):
    def __missing__(self, case: str) -> Callable[[], None]:
        name, _, mode = case.partition("-")
        if name == "command_line":
            return lambda: run("fd_pipe", "restore", TORPOR)
        return lambda: run(name, mode, TORPOR_WARM)


CASES = _Cases()
_prepare()
warm.import_all()
# A case is a process that ends soon, as each command is: no collection in it walks over what all of them share, which
# would copy it.
gc.disable()
