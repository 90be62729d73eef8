# SPDX-License-Identifier: Apache-2.0
"""Tests in guests run only when asked for: ``-m vm`` (they fetch hundreds of megabytes the first time).

All cases of one architecture and kernel run in one boot; two guests (``TORPOR_VM_JOBS``) run at a time.  What may wreck
a kernel has a boot of its own: `ALONE`, and whatever is left when a guest's kernel says that it has come to harm.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from vmlab import VmError, cache_dir, criu, machine, programs
from vmlab.targets import CPUS, TARGETS

BOOTS = 3
ALONE = (
    "mem_cow",
    "threads_1000",
    "tree_wide",
)  # take much of the guest's memory: the last ones, in a boot of their own
CASE_TIMEOUT = 300  # seconds without a result after which a guest is given up
Key = tuple[str, str, str, str]


def _remember(arch: str, version: str, module: str, found: dict[str, dict[str, Any]]) -> None:
    """Add results to those of earlier runs in the file from which tools/guests.py makes docs/guests.md."""
    path = cache_dir() / "results" / f"{arch}-{version}-{module}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(known | found, indent=1))
    partial.rename(path)


class Guests:
    """Starts each guest once, with all cases that this session selected, and hands out their results."""

    def __init__(self, wanted: dict[Key, list[str]]) -> None:
        self.exercised: list[str] = []  # a line for each guest of test_exercised_registers.py
        self._pool = ThreadPoolExecutor(int(os.environ.get("TORPOR_VM_JOBS", "2")))
        self._outcomes: dict[Key, Future[dict[str, dict[str, Any]]]] = {
            key: self._pool.submit(self._boot, key, cases) for key, cases in wanted.items()
        }

    def _boot(self, key: Key, cases: list[str]) -> dict[str, dict[str, Any]]:
        """Every case's result.  A guest that dies or hangs is booted again, without the case that it was at."""
        arch, version, module, cpu = key
        target = TARGETS[arch]
        found: dict[str, dict[str, Any]] = {}
        files: dict[str, Path] = {}
        if module in ("workloads", "exchange"):
            files, broken = programs.build(target, sorted({case.partition("-")[0] for case in cases} | {"fd_pipe"}))
            files.update(programs.sources())
            for case in cases:
                if case.partition("-")[0] in broken:
                    found[case] = {"outcome": "failed", "output": broken[case.partition("-")[0]]}
        for boot in range(BOOTS + 1):
            left = [case for case in cases if case not in found]
            if boot == 0 and module == "workloads":
                left = [case for case in left if case.partition("-")[0] not in ALONE] or left
            if not left:
                break
            outcome = machine.run(
                target, version, ["/t/runner.py", module, *left],
                files=files, extra=CPUS.get((arch, cpu), ("-cpu", cpu)) if cpu else (), timeout=CASE_TIMEOUT,
                disk=2048 if module == "workloads" else 0,
                archives=[criu.archive(target)] if module == "exchange" else [],
            )  # fmt: skip
            for result in outcome.results:
                found[result["case"]] = result
            text = str(machine.describe_failure(outcome))
            for case in outcome.unfinished or ([] if outcome.results else left):
                found[case] = {"outcome": "failed", "output": text}
        _remember(arch, version, f"{module}-{cpu}" if cpu else module, found)
        return found

    def check(self, arch: str, kernel: str, module: str, case: str, cpu: str = "") -> str:
        """What the case printed.  Fails the test with what went wrong."""
        try:
            results = self._outcomes[arch, kernel, module, cpu].result()
        except VmError as error:
            pytest.fail(str(error), pytrace=False)
        if case not in results:
            pytest.fail(f"the guest died {BOOTS} times before it came to this case", pytrace=False)
        result = results[case]
        text = str(result["output"])
        if result["outcome"] == "failed":
            pytest.fail(f"in the guest:\n{text}", pytrace=False)
        if result["outcome"] == "skipped":
            pytest.skip(f"{arch} {kernel}: {text.strip()}")
        return text

    def close(self) -> None:
        """Whatever still runs is not wanted any more: Ctrl-C, or --exitfirst."""
        machine.end_all()
        self._pool.shutdown(cancel_futures=True)


REPORT = pytest.StashKey[list[str]]()  # lines for the end of the run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(REPORT, []):
        terminalreporter.section("registers and features that were exercised")
        for line in sorted(lines):
            terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: runs in a guest with another kernel or architecture (make test-vm)")
    config.addinivalue_line("markers", "vm_subset: of these, a few minutes' worth (make test-vm-subset)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "vm" not in config.option.markexpr:
        guests = [item for item in items if item.get_closest_marker("vm")]
        if guests:
            items[:] = [item for item in items if item not in set(guests)]
            config.hook.pytest_deselected(items=guests)


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest) -> Iterator[Guests]:
    wanted: dict[Key, list[str]] = {}
    for item in request.session.items:
        where = getattr(item, "callspec", None)
        if item.get_closest_marker("vm") and where and {"arch", "kernel", "case"} <= where.params.keys():
            parameters = where.params
            key = (parameters["arch"], parameters["kernel"], item.module.MODULE, parameters.get("cpu", ""))
            for case in where.params["case"].split():
                if case not in wanted.setdefault(key, []):
                    wanted[key].append(case)
    running = Guests(wanted)
    request.config.stash[REPORT] = running.exercised
    yield running
    running.close()
