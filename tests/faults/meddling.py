# SPDX-License-Identifier: Apache-2.0
"""``python meddling.py N WHOM:SIGNAL[,…] torpor-arguments…``: a torpor command to which something happens on the way.

At the engine's Nth step (`harness.killing`) signals are sent: to a PID, or to ``engine``, ``front`` or ``guardian``.
N = 0: nothing happens; prints how many steps there are.  ``call`` instead of WHOM:SIGNAL: the Nth call of a
program in a task fails.  ``slowly,`` before it: what the guardian lets run runs for a while.
"""

import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from harness.killing import Steps
from torpor.cli.__main__ import main
from torpor.engine import guardian, stops
from torpor.kernel import ptrace


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


def slow_down() -> None:
    """After each PTRACE_CONT of the guardian's, wait; and before PTRACE_INTERRUPT, lest it should stop a thread again
    that job control has stopped already: PTRACE_CONT then lets it run."""
    cont, interrupt, guard = ptrace.cont, ptrace.interrupt, guardian._guard

    def cont_slowly(tid: int, number: int = 0) -> None:
        cont(tid, number)
        time.sleep(0.02)

    def interrupt_slowly(tid: int) -> None:
        time.sleep(0.005)
        if not stops.peek_group_stop(tid):
            interrupt(tid)

    def guard_slowly(*arguments: int) -> None:
        ptrace.cont, ptrace.interrupt = cont_slowly, interrupt_slowly
        guard(*arguments)

    guardian._guard = guard_slowly


def run(at: int, deeds: str, arguments: list[str]) -> int:
    front, told = os.getpid(), os.dup(1)
    if deeds != (deeds := deeds.removeprefix("slowly,")):
        slow_down()

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
