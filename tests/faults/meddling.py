# SPDX-License-Identifier: Apache-2.0
"""``python meddling.py N WHOM:SIGNAL[,…] torpor-arguments…``: a torpor command to which something happens on the way.

At the engine's Nth step signals are sent: to a PID, or to ``engine``, ``front`` or ``guardian``.  A step is what the
engine does to a task (a ptrace request, a write to the task's memory, a message to its executor), and what it writes
into its journal.  Meddling before each of them in turn visits every state in which a task can be.  N = 0: nothing
happens; prints how many steps there are.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from torpor.cli.__main__ import main
from torpor.engine import journal
from torpor.engine.tracee import Tracee
from torpor.kernel import ptrace


class Steps:
    """Counts the steps of the engine: the front's child.  (The guardian, its grandchild, takes the same ones.)"""

    def __init__(self, at: int, deeds: str, said: int) -> None:
        self.at, self.said = at, said
        self.deeds = [deed.split(":") for deed in deeds.split(",")]
        self.front = os.getpid()
        self.process = self.count = 0  # which process that is, and is it the engine?
        self.is_engine = False

    def step(self) -> None:
        if self.process != os.getpid():
            self.process, self.is_engine = os.getpid(), os.getppid() == self.front
        if not self.is_engine:
            return
        self.count += 1
        if self.count == self.at:
            for whom, number in self.deeds:
                self.meddle(whom, int(number))

    def meddle(self, whom: str, number: int) -> None:
        try:
            os.kill(self.pid(whom), number)
        except ProcessLookupError:
            pass
        time.sleep(0.002)  # it may take effect before the engine goes on

    def pid(self, whom: str) -> int:
        if whom == "engine":
            return os.getpid()
        if whom == "front":
            return self.front
        if whom == "guardian":
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                return int(file.read().split()[0])
        return int(whom)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.step()
            return function(*arguments, **named)

        return wrapped

    def tell(self) -> None:
        if self.is_engine and self.process == os.getpid():
            os.write(self.said, f"steps {self.count}\n".encode())


def run(at: int, deeds: str, arguments: list[str]) -> int:
    steps = Steps(at, deeds, os.dup(1))
    ptrace.request = steps.counted(ptrace.request)
    journal.note = steps.counted(journal.note)
    Tracee.write = steps.counted(Tracee.write)  # type: ignore[method-assign]
    socket.socket.send = steps.counted(socket.socket.send)  # type: ignore[method-assign]
    leave = os._exit

    def leaving(status: int) -> Any:
        steps.tell()
        leave(status)

    os._exit = leaving
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
