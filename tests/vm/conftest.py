# SPDX-License-Identifier: Apache-2.0
"""Tests in guests run only when asked for: ``-m vm`` (they fetch hundreds of megabytes the first time).

All cases of one architecture and kernel run in one boot (vmlab/session.py); two guests (``TORPOR_VM_JOBS``) run at a
time, from the beginning of the run on.  A line tells of each that has come to its end; the summary counts per kernel,
and has what tests want to be read when they have passed, too (``record_property("said", ...)``): what came through a
change of the kernel, and how often the power failed.
"""

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from vmlab import VmError, jobs, machine, processors
from vmlab.choice import asked_for, boots, choose
from vmlab.debian import require
from vmlab.image import needed
from vmlab.powerloss import failures, first_seed
from vmlab.session import Guests, Key
from vmlab.summary import said
from vmlab.targets import TARGETS


class Checked:
    """What the tests get: the guests, and a test's failure or skip for what a case has come to."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self.exercised = guests.exercised

    def check(self, arch: str, kernel: str, module: str, case: str, cpu: str = "") -> str:
        """What the case printed.  Fails the test with what went wrong."""
        problem = ""
        try:
            result = self._guests.result(Key(arch, kernel, module, cpu), case)
        except VmError as error:
            problem = str(error)
        if problem:
            pytest.fail(problem, pytrace=False)
        text = str(result["output"])
        if result["outcome"] == "failed":
            pytest.fail(f"in the guest:\n{text}", pytrace=False)
        if result["outcome"] == "skipped":
            pytest.skip(f"{arch} {kernel}: {text.strip()}")
        return text


GUESTS = pytest.StashKey[Guests]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    per_kernel: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in terminalreporter.stats.get(outcome, []):
            if name := re.search(r"/vm/.*\[(\w+)-(?:.*-)?(6\.\d+)-", report.nodeid):
                per_kernel.setdefault(f"{name[1]} {name[2]}", Counter())[outcome] += 1
    if per_kernel:
        terminalreporter.section("tests of each kernel")
        for where, counts in sorted(per_kernel.items()):
            numbers = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
            terminalreporter.line(f"{where:14} {numbers}")
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    if lines := list(said(reports)):
        terminalreporter.section("what guests have shown")
        for line in lines:
            terminalreporter.line(line)
    guests = config.stash.get(GUESTS, None)
    if guests is None:
        return
    terminalreporter.section("guests")
    for boot in guests.boots.values():
        terminalreporter.line(str(boot))
    if guests.exercised:
        terminalreporter.section("registers and features that were exercised")
        for line in sorted(guests.exercised):
            terminalreporter.line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("guests")
    group.addoption("--arch", default="", help="of the tests in guests only those of this architecture")
    group.addoption("--kernel", default="", help="of the tests in guests only those that boot this kernel")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: runs in a guest with another kernel or architecture (make test-vm)")
    config.addinivalue_line("markers", "vm_subset: of these, a few minutes' worth (make test-vm-subset)")
    config.addinivalue_line("markers", "boots(kernel..., arch=...): its guests, where its parameters do not tell")


def _asks_for_guests(config: pytest.Config) -> bool:
    return not {"vm", "vm_subset"}.isdisjoint(asked_for(config.option.markexpr))


def _asks_for_a_case(item: pytest.Item) -> bool:
    return "case" in getattr(getattr(item, "callspec", None), "params", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    guests = [item for item in items if item.get_closest_marker("vm")]
    chosen: list[pytest.Item] = []
    if _asks_for_guests(config):
        arch, kernel = (config.getoption(name, default="") for name in ("--arch", "--kernel"))
        try:
            chosen = choose(guests, arch, kernel, config.option.keyword)
        except VmError as error:
            raise pytest.UsageError(str(error)) from None
    if left_out := set(guests) - set(chosen):
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))
    # Those that boot guests of their own come first: the others wait for guests that run meanwhile.
    items.sort(key=_asks_for_a_case)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What could not work, or is not there, is said before the first guest is started."""
    if not _asks_for_guests(session.config):
        return
    if not session.items:
        where = "python -m pytest -m vm tests/vm --collect-only -q lists all"
        raise pytest.UsageError(f"nothing was chosen that runs in a guest; {where}")
    try:
        jobs(), processors(), failures(), first_seed()
        archs = sorted({boots(item).arch for item in session.items if item.get_closest_marker("vm")})
        require(*(one for arch in archs for one in needed(TARGETS[arch])))
        with machine.scratch_directory("try-"):
            pass
    except VmError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session", autouse=True)
def _running(request: pytest.FixtureRequest) -> Iterator[Guests | None]:
    wanted: list[tuple[Key, str]] = []
    for item in request.session.items:
        where = getattr(item, "callspec", None)
        if item.get_closest_marker("vm") and where and {"arch", "kernel", "case"} <= where.params.keys():
            given = where.params
            key = Key(given["arch"], given["kernel"], item.module.MODULE, given.get("cpu", ""))
            wanted += [(key, case) for case in given["case"].split()]
    if not wanted:
        yield None
        return
    capture = request.config.pluginmanager.getplugin("capturemanager")
    terminal = request.config.pluginmanager.getplugin("terminalreporter")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(line, flush=True)

    own = any(item.get_closest_marker("vm") and not _asks_for_a_case(item) for item in request.session.items)
    running = Guests(wanted, tell, reserved=own)
    request.config.stash[GUESTS] = running
    yield running
    running.close()


@pytest.fixture(scope="session")
def guests(_running: Guests) -> Checked:
    return Checked(_running)


@pytest.fixture(autouse=True)
def _progress(_running: Guests | None, request: pytest.FixtureRequest) -> Iterator[None]:
    if _running is not None and _asks_for_a_case(request.node):
        _running.take_all()
    yield
    if _running is not None:
        _running.tell()
