# SPDX-License-Identifier: Apache-2.0
"""Runs test cases inside a guest: ``runner.py MODULE CASE...``, each in a fork of this one process.

Starting Python costs seconds under emulation, a fork nothing.  A case is a function without arguments in the module's
``CASES``; it fails by an exception.  What it prints is reported with its result, as one JSON object in a line.
"""

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback

CASE_SECONDS = 60


def run(name: str, function: object) -> dict[str, object]:
    """Run one case in a child that leads its own process group, and end the whole group afterwards."""
    start = time.monotonic()
    output = os.memfd_create("output", 0)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setpgid(0, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            function()  # type: ignore[operator]
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    pidfd = os.pidfd_open(child)
    late = not select.select([pidfd], [], [], CASE_SECONDS)[0]
    os.close(pidfd)
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if late:
            os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    size = os.fstat(output).st_size
    text = os.pread(output, 20000, max(0, size - 20000)).decode(errors="replace")
    os.close(output)
    if late:
        text += f"\n(no end after {CASE_SECONDS} s)"
    return {"case": name, "ok": code == 0 and not late, "seconds": round(time.monotonic() - start, 2), "output": text}


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    for name in sys.argv[2:] or list(module.CASES):
        result = run(name, module.CASES[name])
        sys.stdout.write(f"@@RESULT {json.dumps(result)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
