# SPDX-License-Identifier: Apache-2.0
"""Runs test cases inside a guest: ``runner.py MODULE [CASE...]``, each in a fork of this one process.

Starting Python costs seconds under emulation, a fork nothing.  A case is a function without arguments in the module's
``CASES``; it fails by an exception.  What it prints is reported with its result, as one JSON object in a line.  Cases
that spend their time waiting run a few at a time (``AT_ONCE`` of the module).
"""

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable

CASE_SECONDS = 60


class Case:
    """One running case: a child that leads its own process group, which is ended as a whole afterwards."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self.name = name
        self.begun = time.monotonic()
        self.output = os.memfd_create("output", 0)
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.setpgid(0, 0)
                os.dup2(self.output, 1)
                os.dup2(self.output, 2)
                function()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        self.pidfd = os.pidfd_open(self.pid)

    def finish(self) -> None:
        """Report a case that has ended, or had its time."""
        late = not select.select([self.pidfd], [], [], 0)[0]
        for kill, number in ((os.killpg, self.pid), (os.kill, self.pid)):
            try:
                kill(number, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        size = os.fstat(self.output).st_size
        text = os.pread(self.output, 8000, max(0, size - 8000)).decode(errors="replace")
        os.close(self.output)
        os.close(self.pidfd)
        if late:
            text += f"\n(no end after {CASE_SECONDS} s)"
        seconds = round(time.monotonic() - self.begun, 2)
        result = {"case": self.name, "ok": code == 0 and not late, "seconds": seconds, "output": text}
        sys.stdout.write(f"@@RESULT {json.dumps(result)}\n")
        sys.stdout.flush()


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    waiting = sys.argv[2:] or list(module.CASES)
    waiting.reverse()
    running: list[Case] = []
    while waiting or running:
        while waiting and len(running) < getattr(module, "AT_ONCE", 1):
            name = waiting.pop()
            running.append(Case(name, module.CASES[name]))
        left = max(0.0, min(case.begun for case in running) + CASE_SECONDS - time.monotonic())
        ready = select.select([case.pidfd for case in running], [], [], left)[0]
        for case in list(running):
            if case.pidfd in ready or time.monotonic() > case.begun + CASE_SECONDS:
                running.remove(case)
                case.finish()


if __name__ == "__main__":
    main()
