# SPDX-License-Identifier: Apache-2.0
"""Runs test cases inside a guest: ``runner.py MODULE [CASE...] [-- MODULE ...]``, each in a fork of this one process.

Starting Python costs seconds under emulation, a fork nothing.  A case is a function without arguments in the module's
``CASES``; it fails by an exception; exit status 77 says that it cannot run here.  What it prints is reported with its
result, as one JSON object in a line.  Cases that spend their time waiting run a few at a time (``AT_ONCE`` of the
module); a module's ``CASE_SECONDS`` are how long one may take.  A kernel that says it has come to harm is given no
further case: the guest ends, and whoever started it boots another for the rest.  What a case leaves behind is
ended in a guest; on a machine that others use, too, it is left alone.

A module may run several cases as one (``GROUPS``, which makes groups of the cases' names, and ``TOGETHER``, which runs
such a group and returns each case's outcome and output).  Where that fails, each is run alone, to find out which it is;
if all pass then, the last one fails, with what they came to together.
"""

import functools
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

CASE_SECONDS = 60


SKIPPED = 77
WRECKED = 3  # exit status
_HARM = (b"BUG: ", b"Oops", b"Internal error", b"general protection", b"kernel panic", b"Unable to handle kernel",
         b"soft lockup", b"blocked for more than")  # fmt: skip


Outcomes = dict[str, tuple[str, str]]


class Failed(NamedTuple):
    """A group that failed, and what its cases have come to since, each alone."""

    names: list[str]
    text: str
    alone: dict[str, str]


class Case:
    """One running case, or a group: a child that leads its own process group, which is ended as a whole afterwards."""

    def __init__(
        self, names: list[str], function: Callable[[], object], seconds: float, group: Failed | None = None
    ) -> None:
        self.names, self.group = names, group
        self.deadline = time.monotonic() + seconds
        for name in names:
            say("BEGIN", name)
        self.begun = time.monotonic()
        self.output, self.outcomes = os.memfd_create("output", 0), os.memfd_create("outcomes", 0)
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.setpgid(0, 0)
                os.dup2(self.output, 1)
                os.dup2(self.output, 2)
                returned = function()
                if len(names) > 1:
                    os.write(self.outcomes, json.dumps(returned).encode())
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        self.pidfd = os.pidfd_open(self.pid)

    def finish(self) -> Failed | None:
        """Report a case that has ended, or had its time.  A group that has failed is returned."""
        late = not select.select([self.pidfd], [], [], 0)[0]
        for kill, number in ((os.killpg, self.pid), (os.kill, self.pid)):
            try:
                kill(number, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        text = _end_of(self.output, 8000)
        several: Outcomes = json.loads(_end_of(self.outcomes) or "{}")
        for fd in (self.output, self.outcomes, self.pidfd):
            os.close(fd)
        if late:
            text += "\n(it did not end in time)"
        outcome = "failed" if late or code not in (0, SKIPPED) else "skipped" if code else "passed"
        if len(self.names) == 1:
            self._report({self.names[0]: (outcome, text)})
        elif outcome == "passed" and several.keys() == set(self.names):
            self._report(several)
        else:
            print(f"failed together: {', '.join(self.names)}: {text}")
            return Failed(self.names, text, {})
        return None

    def _report(self, outcomes: Outcomes) -> None:
        seconds = round((time.monotonic() - self.begun) / len(outcomes), 2)
        for name, (outcome, text) in outcomes.items():
            if self.group:
                self.group.alone[name] = outcome
                if self.group.alone.keys() == set(self.group.names) and "failed" not in self.group.alone.values():
                    outcome, text = "failed", f"each passes alone; together {self.group.names}:\n{self.group.text}"
            result = {"case": name, "outcome": outcome, "seconds": seconds, "output": text, "together": len(outcomes),
                      "release": os.uname().release}  # fmt: skip
            say("RESULT", json.dumps(result))


def _end_of(fd: int, size: int = 1 << 20) -> str:
    return os.pread(fd, size, max(0, os.fstat(fd).st_size - size)).decode(errors="replace")


def say(mark: str, text: str) -> None:
    """A line for whoever started this guest."""
    sys.stdout.write(f"@@{mark} {text}\n")
    sys.stdout.flush()


class Kernel:
    """What the kernel says, in a guest."""

    def __init__(self) -> None:
        self._log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK) if in_guest() else -1

    def harm(self) -> str:
        """The first new message that tells of a bug or a crash."""
        found = ""
        while self._log >= 0:
            try:
                line = os.read(self._log, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # some were lost
                continue
            level, _, text = line.partition(b";")
            if not found and int(level.split(b",")[0]) < 8 and any(word in text for word in _HARM):
                found = text.partition(b"\n")[0].decode(errors="replace")
        return found


def in_guest() -> bool:
    return os.environ.get("TORPOR_TEST_GUEST") == "yes" and os.getppid() == 1


def sweep() -> None:
    """End whatever cases have left behind: all but init, this process, and the kernel's own.  Only in a guest."""
    if not in_guest():
        return
    tree = [1]
    for pid in tree:
        try:
            for tid in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{tid}/children") as file:
                    tree += map(int, file.read().split())
        except OSError:  # it, or this thread, has just ended
            continue
    for pid in tree:
        if pid not in (1, os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def main() -> None:
    kernel = Kernel()
    words = sys.argv[1:]
    while words:
        end = words.index("--") if "--" in words else len(words)
        run(words[0], words[1:end], kernel)
        words = words[end + 1 :]


def run(name_of_module: str, cases: list[str], kernel: Kernel) -> None:
    """All cases of one module, or those that are named."""
    module = importlib.import_module(name_of_module)
    names = cases or list(module.CASES)
    waiting: list[tuple[list[str], Failed | None]] = [(group, None) for group in _groups(module, names)]
    waiting.reverse()
    running: list[Case] = []
    at_once, seconds = getattr(module, "AT_ONCE", 1), getattr(module, "CASE_SECONDS", CASE_SECONDS)
    while waiting or running:
        while waiting and len(running) < at_once:
            group, failed = waiting.pop()
            function = functools.partial(module.TOGETHER, group) if len(group) > 1 else module.CASES[group[0]]
            running.append(Case(group, function, seconds, failed))
        left = max(0.0, min(case.deadline for case in running) - time.monotonic())
        ready = select.select([case.pidfd for case in running], [], [], left)[0]
        for case in list(running):
            if case.pidfd in ready or time.monotonic() > case.deadline:
                running.remove(case)
                if (failed := case.finish()) is not None:
                    waiting += [([name], failed) for name in reversed(failed.names)]
        if not running:
            sweep()
            if harm := kernel.harm():
                say("HARM", harm)
                sys.exit(WRECKED)


def _groups(module: ModuleType, names: list[str]) -> list[list[str]]:
    return module.GROUPS(names) if hasattr(module, "GROUPS") else [[name] for name in names]


if __name__ == "__main__":
    main()
