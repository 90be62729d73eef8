# SPDX-License-Identifier: Apache-2.0
"""All guests of one test run: each is started once for all the cases that were selected, and hands out their results.

Cases of one architecture, kernel and CPU share a boot, whatever module of tests/vm/guest they are of; those of `APART`
need another machine.  Every result is written down when it comes, so that a run that is cut short has not run in vain.
"""

import functools
import json
import os
import queue
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from . import VmError, cache_dir, criu, in_cache, jobs, machine, processors, programs
from .kept import locked
from .targets import CPUS, TARGETS

TWO = "two_processors"  # instead of a CPU's name: two of the usual ones, so that tasks run at the same time
APART = ("exchange",)
MEMORY = 1024  # MiB
PROGRESS = 60  # seconds from one line about guests that run to the next
CASE_TIMEOUT = 620  # seconds without a case that begins or ends after which a guest is given up
Result = dict[str, Any]


class Key(NamedTuple):
    """What a case needs, and the module of tests/vm/guest that has it."""

    arch: str
    kernel: str
    module: str
    cpu: str = ""

    @property
    def boot(self) -> "Key":
        return self if self.module in APART else self._replace(module="")

    @property
    def file(self) -> Path:
        """Results of this and earlier runs, from which tools/guests.py makes docs/guests.md."""
        several = f"all_with_{processors()}_processors" if processors() > 1 else ""
        return cache_dir() / "results" / f"{'-'.join(filter(None, (*self, several)))}.json"


@functools.cache
def commit() -> str:
    """Of what is tried here; with a + where files differ from it; empty: nobody knows."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _known(key: Key) -> dict[str, Result]:
    """What is written down; nothing where there is nothing, or what there is was cut short by a host that crashed."""
    try:
        known: dict[str, Result] = json.loads(key.file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known


@in_cache()
def remember(key: Key, case: str, result: Result) -> None:
    with locked(key.file.parent):
        known = _known(key)
        partial = key.file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known | {case: result}, indent=1))
        partial.rename(key.file)


class Boot:
    """The cases that share a guest, and what has become of them."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.cases: dict[str, Key] = {}
        self.found: dict[str, Result] = {}
        self.harm: list[str] = []  # that came to the kernel, in its words: the next case got another boot
        self.boots = 0
        self.seconds = self.cpu = 0.0

    def __str__(self) -> str:
        counts = Counter(result["outcome"] for result in self.found.values())
        outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "skipped", "failed"))
        modules = ", ".join(dict.fromkeys(key.module for key in self.cases.values()))
        return (
            f"{self.where}, {modules}: {outcomes} in {self.seconds:.0f} s "
            f"({self.cpu:.0f} s of processor time, {self.boots} boots)"
            + (f"; the kernel said: {'; '.join(self.harm)}" if self.harm else "")
        )

    @property
    def where(self) -> str:
        return f"{self.key.arch} {self.key.kernel}" + (f" with {self.key.cpu}" if self.key.cpu else "")

    def expected(self) -> float:
        """Seconds, by what its cases took the last time."""
        known = {key: _known(key) for key in set(self.cases.values())}
        return sum(known[key].get(case, {}).get("seconds", 0.0) for case, key in self.cases.items())

    def run(self) -> dict[str, Result]:
        """Every case's result.  A guest that dies or hangs is booted again, without the case that it was at; if it was
        at several, each of these gets a boot of its own."""
        names = {case.partition("-")[0] for case, key in self.cases.items() if key.module in ("workloads", "exchange")}
        files: dict[str, Path] = {}
        if names:
            files, broken = programs.build(TARGETS[self.key.arch], sorted(names | {"fd_pipe"}))
            files.update(programs.sources())
            for case in self.cases:
                if (why := broken.get(case.partition("-")[0])) is not None:
                    self._heard({"case": case, "outcome": "failed", "output": why})
        alone: list[str] = []
        while left := [case for case in self.cases if case not in self.found]:
            batch = [case for case in left if case not in alone] or left[:1]
            outcome = self._boot(batch, files)
            guilty = set(outcome.unfinished)
            if len(guilty) > 1:
                alone += guilty
                continue
            if not guilty and not outcome.results:  # it never came to a case
                guilty = set(batch)
            for case in guilty:
                text = str(machine.describe_failure(outcome))
                self._heard({"case": case, "outcome": "failed", "output": text})
        return self.found

    def _boot(self, cases: list[str], files: dict[str, Path]) -> machine.Outcome:
        arch, kernel, _, cpu = self.key
        modules: dict[str, list[str]] = {}
        for case in cases:
            modules.setdefault(self.cases[case].module, []).append(case)
        argv = [word for module, of_it in modules.items() for word in ("--", module, *of_it)][1:]
        exchange = "exchange" in modules
        own = () if cpu in ("", TWO) else CPUS.get((arch, cpu), ("-cpu", cpu))
        outcome = machine.run(
            TARGETS[arch], kernel, ["/t/runner.py", *argv],
            files=files, extra=own, timeout=CASE_TIMEOUT,
            disk=0 if exchange else 2048, memory=MEMORY, cpus=2 if cpu == TWO else 0, heard=self._heard,
            archives=[criu.archive(TARGETS[arch])] if exchange else [],
        )  # fmt: skip
        self.harm += re.findall(r"@@HARM (.*)", outcome.output)
        self.boots += 1
        self.seconds += outcome.seconds
        self.cpu += outcome.cpu
        return outcome

    def _heard(self, result: Result) -> None:
        result["at"], result["commit"] = time.time(), commit()
        self.found[result["case"]] = result
        remember(self.cases[result["case"]], result["case"], result)


class Guests:
    """Starts the guests, as many at a time as TORPOR_VM_JOBS says (2).

    `reserved`: one less, until `take_all`.  Tests that boot one guest after the other, each for seconds, would wait for
    minutes between them, and be left over at the end, one at a time.
    """

    def __init__(self, wanted: list[tuple[Key, str]], tell: Callable[[str], object], reserved: bool = False) -> None:
        self.exercised: list[str] = []  # a line for each guest of test_exercised_registers.py
        self.boots: dict[Key, Boot] = {}
        self._tell, self._next = tell, time.monotonic() + PROGRESS
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        for key, case in wanted:
            boot = self.boots.setdefault(key.boot, Boot(key.boot))
            if boot.cases.setdefault(case, key) != key:
                raise ValueError(f"{boot.cases[case].module} and {key.module} both have a case {case}")
        self._reserved, self._places = reserved, threading.Semaphore(jobs() - reserved)
        self._pool = ThreadPoolExecutor(jobs())
        longest_first = sorted(self.boots.values(), key=lambda boot: (-boot.expected(), -len(boot.cases)))
        self._outcomes: dict[Key, Future[dict[str, Result]]] = {
            boot.key: self._pool.submit(self._run, boot) for boot in longest_first
        }

    def _run(self, boot: Boot) -> dict[str, Result]:
        with self._places:
            try:
                return boot.run()
            finally:
                self._told.put(str(boot))

    def take_all(self) -> None:
        """Nobody else wants to start guests any more."""
        if self._reserved:
            self._reserved = False
            self._places.release()

    def result(self, key: Key, case: str) -> Result:
        """Waits for the guest.  Raises VmError where there was none."""
        outcome = self._outcomes[key.boot]
        while not outcome.done():
            self.tell()
            wait([outcome], timeout=1)
        self.tell()
        if case in self.boots[key.boot].found:  # even if a later boot of the same guest came to nothing
            return self.boots[key.boot].found[case]
        return outcome.result()[case]

    def tell(self) -> None:
        """A line for each guest that has come to its end meanwhile, and now and then one about those that run."""
        while not self._told.empty():
            self._tell(self._told.get())
        if time.monotonic() > self._next:
            self._next = time.monotonic() + PROGRESS
            begun = [boot for boot in self.boots.values() if boot.found and len(boot.found) < len(boot.cases)]
            if begun:
                self._tell("; ".join(f"{boot.where}: {len(boot.found)} of {len(boot.cases)} cases" for boot in begun))

    def close(self) -> None:
        """Whatever still runs is not wanted any more: Ctrl-C, or --exitfirst."""
        machine.end_all()
        self.take_all()
        self._pool.shutdown(cancel_futures=True)
        self.tell()


__all__ = ["Boot", "Guests", "Key", "VmError"]
