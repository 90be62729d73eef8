# SPDX-License-Identifier: Apache-2.0
"""``python dying.py N torpor-arguments…``: a torpor command whose engine kills itself at its Nth step.

A step is what the engine does to a task: a ptrace request, a write to the task's memory, a message to its executor.
Dying before each of them in turn visits every state in which a task can be left.  N = 0: count them, and say how many.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from torpor.cli.__main__ import main
from torpor.engine.tracee import Tracee
from torpor.kernel import ptrace


class Steps:
    """Counts the steps of the first process that takes one: the engine."""

    def __init__(self, last: int, said: int) -> None:
        self.last, self.said = last, said
        self.engine = self.count = 0

    def step(self) -> None:
        if not self.engine:
            self.engine = os.getpid()
        if os.getpid() != self.engine:
            return
        self.count += 1
        if self.count == self.last:
            if os.environ.get("DYING_TRACE"):
                import traceback

                traceback.print_stack()
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.step()
            return function(*arguments, **named)

        return wrapped

    def tell(self) -> None:
        if os.getpid() == self.engine:
            os.write(self.said, f"steps {self.count}\n".encode())


def run(last: int, arguments: list[str]) -> int:
    steps = Steps(last, os.dup(1))
    ptrace.request = steps.counted(ptrace.request)
    Tracee.write = steps.counted(Tracee.write)  # type: ignore[method-assign]
    socket.socket.send = steps.counted(socket.socket.send)  # type: ignore[method-assign]
    leave = os._exit

    def leaving(status: int) -> Any:
        steps.tell()
        leave(status)

    os._exit = leaving
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
