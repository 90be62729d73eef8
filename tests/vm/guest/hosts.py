# SPDX-License-Identifier: Apache-2.0
"""From host to host, one step in each: ``hosts.py STEP``, on a disk that goes from guest to guest.

dump: the busy tree, with --cpu-cap.  restore: it goes on here, whose CPU has all that is asked for.  lacking: this CPU
has not; that is said, and nothing is made.  vectors: dumps a program that holds vector registers.  refuse: it cannot be
restored here.  hold: here it can.
"""

import os
import sys
import time

import update

PR_SECONDS = 1


def main() -> None:
    step = sys.argv[1]
    if step == "dump":
        update.begin()
        update.work()
        update.dump("--cpu-cap")
        update.torpor("cpuinfo", "dump")  # the same once more, which does no harm to the checkpoint
    elif step == "restore":
        update.torpor("cpuinfo", "check")
        update.torpor("restore", "-d", "--cpu-cap=ins,fpu")
        update.work()
        update.finish()
    elif step == "lacking":
        said = [update.torpor("cpuinfo", "check", fails=True), update.torpor("restore", "-d", "--cpu-cap", fails=True)]
        if not all("avx2 instructions" in text for text in said):
            sys.exit(f"it does not say that AVX2 is lacking: {said}")
        update.figures["said"] = said[1]
        update.nothing_made()
    elif step == "vectors":
        update.begin("vectors.py", "holding")
        time.sleep(PR_SECONDS)  # it is on its way from the file to the loop
        update.dump()
    elif step == "refuse":
        said = update.torpor("restore", "-d", fails=True)
        if "it uses AVX, which this CPU does not have" not in said:
            sys.exit(f"it does not say that AVX is lacking: {said}")
        update.figures["said"] = said
        update.nothing_made()
    else:
        update.torpor("restore", "-d")
        with open(f"{update.DATA}/go", "r+b") as file:
            file.write(b"\1")
        deadline = time.monotonic() + 60
        while not os.path.exists(f"{update.DATA}/result") and time.monotonic() < deadline:
            time.sleep(0.05)
        with open(f"{update.DATA}/result") as file:
            update.figures["vectors"] = file.read()
        if update.figures["vectors"] != '{"vectors": []}':
            sys.exit(f"vector registers have changed: {update.figures['vectors']}")
    update.report(step)


main()
