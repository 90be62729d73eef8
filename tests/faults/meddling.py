# SPDX-License-Identifier: Apache-2.0
"""``python meddling.py N WHOM:SIGNAL[,…] torpor-arguments…``: a torpor command to which something happens on the way.

At the engine's Nth step (`harness.killing`) signals are sent: to a PID, or to ``engine``, ``front`` or ``guardian``.
N = 0: nothing happens; prints how many steps there are.  ``call`` instead of WHOM:SIGNAL: the Nth call of a
program in a task fails.
"""

import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from harness.killing import Steps
from torpor.cli.__main__ import main


def meddle(whom: str, number: int, front: int) -> None:
    try:
        os.kill(pid_of(whom, front), number)
    except ProcessLookupError:
        pass
    time.sleep(0.002)  # it may take effect before the engine goes on


def pid_of(whom: str, front: int) -> int:
    if whom == "engine":
        return os.getpid()
    if whom == "front":
        return front
    if whom == "guardian":
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return int(file.read().split()[0])
    return int(whom)


def run(at: int, deeds: str, arguments: list[str]) -> int:
    front, told = os.getpid(), os.dup(1)

    def deed(step: int) -> None:
        if step == at:
            for whom, number in (one.split(":") for one in deeds.split(",")):
                meddle(whom, int(number), front)

    fails = deeds == "call"
    steps = Steps((lambda _: None) if fails else deed, lambda steps: os.write(told, f"steps {steps}\n".encode()))
    if fails:
        steps.begin_calls(at)
    else:
        steps.begin()
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
