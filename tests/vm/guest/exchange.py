# SPDX-License-Identifier: Apache-2.0
"""Images exchanged with CRIU inside a guest: a case is NAME-MODE, as in tests/test_workloads.py, with the modes
from-criu and to-criu.

Where a case fails, CRIU dumps and restores the workload alone; if it fails in the same way, the case ends as skipped,
with a line "excused: ...".  CRIU does not even start without a loopback interface, which workloads.py brings up.
The case `works` shows that CRIU works here at all.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import refused

import workloads
from harness.events import become_subreaper
from harness.failures import excuse
from harness.modes import MODES, run_case
from harness.tools import TORPOR_WARM, Tool
from harness.workload import DIRECTORY, Skipped, Workload

CASE_SECONDS = 280
TOOLS = {"torpor": TORPOR_WARM, "criu": Tool("criu", ["/criu/criu"])}


def _workload(name: str) -> Workload:
    path = next(path for path in (DIRECTORY / f"{name}.c", DIRECTORY / f"{name}.py") if path.exists())
    workload = Workload(path)
    workload.refused = workload.refused or refused.here(name, path.read_text())
    return workload


def criu_works() -> None:
    """What CRIU says of this kernel, and one dump and restore by CRIU alone."""
    done = subprocess.run([*TOOLS["criu"].command, "check"], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    become_subreaper()
    attempt("fd_pipe", "criu")


def attempt(name: str, mode: str) -> None:
    """One workload through one mode, in a directory that is removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="case-"))
    directory.chmod(0o755)
    try:
        run_case(_workload(name), MODES[mode], TOOLS, directory / "case")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(name: str, mode: str) -> None:
    become_subreaper()
    try:
        attempt(name, mode)
    except Skipped as why:
        print(f"cannot run here: {why}")
        sys.exit(77)
    except AssertionError as error:
        for _ in range(2):
            try:
                attempt(name, "criu")
            except AssertionError as alone:
                if why := excuse(alone, error, MODES[mode].dumper, MODES[mode].restorer):
                    print(f"excused: {why}")
                    sys.exit(77)
                print(f"CRIU alone fails otherwise: {alone}")
                break
        raise


class _Cases(dict[str, Callable[[], None]]):
    def __missing__(self, case: str) -> Callable[[], None]:
        name, _, mode = case.partition("-")
        if name == "works":
            return criu_works
        return lambda: run(name, mode)


CASES = _Cases()
assert workloads.CASES is not None  # imported for what it prepares
