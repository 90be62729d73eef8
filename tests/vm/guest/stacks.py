# SPDX-License-Identifier: Apache-2.0
"""A kernel update of the workload sig_frames, whose signal frames no stack pointer leads to, or which are in shared
memory: ``stacks.py begin | end``, on a disk that goes from guest to guest."""

import os
import signal
import sys
import time

import update

SAID = f"{update.DATA}/said"


def said() -> str:
    with open(SAID) as file:
        return file.read()


def main() -> None:
    step = sys.argv[1]
    if step == "begin":
        update.begin("sig_frames", "said", output=SAID)
        time.sleep(update.WORK)
        update.dump()
    else:
        update.await_clocks()
        update.torpor("check")
        update.torpor("restore", "-d")
        time.sleep(update.WORK)
        if not os.path.exists(f"/proc/{update.ROOT_PID}"):
            sys.exit(f"it has ended:\n{update.kernel_messages()}")
        os.kill(update.ROOT_PID, signal.SIGTERM)
        deadline = time.monotonic() + 120
        while os.path.exists(f"/proc/{update.ROOT_PID}") and time.monotonic() < deadline:
            time.sleep(0.05)
        if said() != "ready\npass\n":
            sys.exit(f"it says {said()!r}:\n{update.look()}")
        update.figures["returned"] = "by all frames"
    update.report(step)


main()
