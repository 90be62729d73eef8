# SPDX-License-Identifier: Apache-2.0
"""Tests in guests run only when asked for: ``-m vm`` (they fetch hundreds of megabytes the first time).

All cases of one architecture and kernel run in one boot; two guests (``TORPOR_VM_JOBS``) run at a time.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from vmlab import VmError, machine
from vmlab.targets import TARGETS

Key = tuple[str, str, str, str]


class Guests:
    """Starts each guest once, with all cases that this session selected, and hands out their results."""

    def __init__(self, wanted: dict[Key, list[str]]) -> None:
        self._pool = ThreadPoolExecutor(int(os.environ.get("TORPOR_VM_JOBS", "2")))
        self._outcomes: dict[Key, Future[machine.Outcome]] = {
            key: self._pool.submit(self._boot, key, cases) for key, cases in wanted.items()
        }

    def _boot(self, key: Key, cases: list[str]) -> machine.Outcome:
        arch, version, module, cpu = key
        extra = ["-cpu", cpu] if cpu else []
        return machine.run(TARGETS[arch], version, ["/t/runner.py", module, *cases], extra=extra)

    def check(self, arch: str, kernel: str, module: str, case: str, cpu: str = "") -> str:
        """What the case printed.  Fails the test with what went wrong."""
        try:
            outcome = self._outcomes[arch, kernel, module, cpu].result()
        except VmError as error:
            pytest.fail(str(error), pytrace=False)
        for result in outcome.results:
            if result["case"] == case:
                if not result["ok"]:
                    pytest.fail(f"in the guest:\n{result['output']}", pytrace=False)
                return str(result["output"])
        pytest.fail(str(machine.describe_failure(outcome)), pytrace=False)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: runs in a guest with another kernel or architecture (make test-vm)")


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
        if item.get_closest_marker("vm") and where and {"arch", "kernel", "module", "case"} <= where.params.keys():
            parameters = where.params
            key = (parameters["arch"], parameters["kernel"], parameters["module"], parameters.get("cpu", ""))
            wanted.setdefault(key, []).append(where.params["case"])
    running = Guests(wanted)
    yield running
    running.close()
