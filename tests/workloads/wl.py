# SPDX-License-Identifier: Apache-2.0
"""What every Python workload shares: the protocol with the harness, children, checks.  The C twin is wl.h.

    import wl
    wl.begin()                    # SIGTERM blocked from here on
    ... set the object up ...
    wl.ready_wait()               # says "ready", sleeps until SIGTERM: here the checkpoint happens
    wl.check(x == y, f"is {x}, was {y}")
    wl.passed()

An exception anywhere is a verdict "fail: ..." too.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

_told: int = -1


def say(line: str) -> None:
    os.write(1, line.replace("\n", " | ").encode() + b"\n")


def fail(why: str) -> NoReturn:
    say(f"fail: {why}")
    os._exit(1)


def skip(why: str) -> NoReturn:
    """This machine cannot run the workload; only before `ready`."""
    say(f"skip: {why}")
    os._exit(77)


def check(condition: object, why: str) -> None:
    if not condition:
        caller = sys._getframe(1)
        fail(f"{os.path.basename(caller.f_code.co_filename)}:{caller.f_lineno}: {why}")


def same(is_now: object, was: object, what: str) -> None:
    if is_now != was:
        caller = sys._getframe(1)
        fail(f"{os.path.basename(caller.f_code.co_filename)}:{caller.f_lineno}: {what} is {is_now!r}, was {was!r}")


def _hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    fail("".join(traceback.format_exception(kind, value, trace)).strip())


def begin() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    sys.excepthook = _hook


def ready() -> None:
    say("ready")


def wait() -> None:
    signal.sigwaitinfo([signal.SIGTERM])


def ready_wait() -> None:
    ready()
    wait()


def passed() -> NoReturn:
    say("pass")
    os._exit(0)


def child(body: Callable[[], None]) -> int:
    """Fork a child that runs `body`; returns once the child has called child_ready().  Leaves no descriptor behind."""
    global _told
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            _told = writer
            body()
            os._exit(0)
        except BaseException as error:
            _hook(type(error), error, error.__traceback__)
    os.close(writer)
    if os.read(reader, 1) != b"x":
        fail(f"child {pid} ended before it was ready")
    os.close(reader)
    return pid


def child_ready() -> None:
    os.write(_told, b"x")
    os.close(_told)


def child_ready_wait() -> None:
    child_ready()
    wait()


def reap(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        fail(f"child {pid} ended with status {status:#x}")


def end(pid: int) -> None:
    """SIGTERM to a child; it must leave with 0."""
    os.kill(pid, signal.SIGTERM)
    reap(pid)
