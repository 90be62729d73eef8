# SPDX-License-Identifier: Apache-2.0
"""The engine process: it alone holds ptrace.

Torpor's front (the command, or a library's host program) forks the engine before anything is frozen, and only waits
for its answer.  Whoever kills the front kills the face: the engine notices, puts everything back and leaves.  ptrace
belongs to one thread, waiting for tracees would steal a host program's children, and signals must not land between two
register writes; a process of its own settles all three.
"""

import gc
import marshal
import os
import sys

from torpor import log
from torpor import signals as signal
from torpor.errors import DumpFailed, TorporError, exhausted
from torpor.typed import Any, Callable, TypeVar

T = TypeVar("T")
Report = Callable[[str, Any], None]

TICK = 200  # milliseconds
LIMIT = "limit"  # a report that is for the front itself
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # to give up

taken: list[int] = []  # of them, those that came to this process while it waited for an engine


def run_engine(
    work: Callable[[Report], T],
    on_report: Callable[[str, Any], None] | None = None,
    on_tick: Callable[[], None] | None = None,
    at_once: bool = False,
) -> T:
    """Run `work(report)` in a forked engine process; returns or raises what it returned or raised.

    `report(kind, value)` inside the engine calls `on_report(kind, value)` out here (progress); `on_tick` is called some
    times a second.  A signal that would end the front (SIGINT, SIGTERM, SIGHUP) is handed to the engine, which gives up
    at its next safe point.

    `report(LIMIT, (seconds, (what, why, remedy), left))` lets the front kill the engine when so much time has passed,
    call `on_report(LIMIT, left)`, and raise DumpFailed: for what the kernel may make the engine wait for.
    `report(LIMIT, None)`: that is over.

    `at_once`: the engine need not wait for a processor (`torpor.kernel.process.fork_here`).
    """
    from torpor.engine import waiting  # noqa: F401  (imported here, for the engine and the front)
    from torpor.kernel.process import fork, fork_here

    theirs, ours = os.pipe2(os.O_CLOEXEC)
    alive, alive_end = os.pipe2(os.O_CLOEXEC)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the host was started without
            stream.flush()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (*REQUESTS, signal.SIGCHLD))
    try:
        pid = fork_here() if at_once else fork()
    except BaseException:
        for fd in (theirs, ours, alive, alive_end):
            os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    if pid == 0:
        status = 1
        try:
            os.close(theirs)
            os.close(alive_end)
            _engine(work, ours, alive)
            status = 0
        finally:
            os._exit(status)
    os.close(ours)
    os.close(alive)
    try:
        answer = _front(theirs, pid, on_report, on_tick)
    finally:
        os.close(theirs)
        os.close(alive_end)  # whatever happened to us: the engine gives up now, if it has not ended
        status = _collect(pid)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    result: T = _result(answer, status)
    return result


def give_back_signals() -> None:
    """For a library: what was taken is meant for the host, whatever it does about it."""
    while taken:
        os.kill(os.getpid(), taken.pop(0))


def _engine(work: Callable[[Report], T], out: int, alive: int) -> None:
    from torpor.engine import waiting

    gc.disable()  # it ends soon, and ten thousand areas or threads would be looked through again and again
    waiting.setup(alive)

    def report(kind: str, value: Any) -> None:
        _send(out, (kind, value))

    try:
        answer: tuple[str, Any] = ("result", work(report))
    except TorporError as error:
        answer = ("error", error)
    except BaseException as error:
        if (told := exhausted(error)) is not None:
            answer = ("error", told)
        else:
            import traceback

            answer = ("bug", (repr(error), traceback.format_exc()))
    log.release()
    try:
        _send(out, answer)
    except BrokenPipeError:
        pass
    except MemoryError as error:  # a small one fits
        _send(out, ("error", exhausted(error)))


def _packed(message: tuple[str, Any]) -> bytes:
    """Plain values as marshal has them, which is there already; errors and the like pickled: 2 ms to import."""
    try:
        return b"m" + marshal.dumps(message)
    except ValueError:
        from _pickle import dumps  # pickle itself would import re and more

        return b"p" + dumps(message)


def _unpacked(data: bytes) -> tuple[str, Any]:
    message: tuple[str, Any]
    if data[:1] == b"m":
        message = marshal.loads(data[1:])
    else:
        from _pickle import loads

        message = loads(data[1:])
    return message


def _send(fd: int, message: tuple[str, Any]) -> None:
    data = _packed(message)
    data = len(data).to_bytes(4, "little") + data
    while data:
        data = data[os.write(fd, data) :]


def _collect(pid: int) -> int:
    """The engine's wait status; 0 where the host collects all its children itself, or ignores SIGCHLD."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return 0


def _front(
    fd: int, pid: int, on_report: Callable[[str, Any], None] | None, on_tick: Callable[[], None] | None
) -> tuple[str, Any] | None:
    """Wait for the engine's answer; None: it died without one."""
    import select  # of which only poll takes descriptors above 1,023, as a host may have them
    from time import monotonic

    from torpor.engine.waiting import open_signals

    signals = open_signals(REQUESTS)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.register(signals, select.POLLIN)
    answer: tuple[str, Any] | None = None
    limit: tuple[float, Any, Any] | None = None
    overdue: tuple[float, Any, Any] | None = None
    data = b""
    try:
        while True:
            ready = [which for which, _ in poller.poll(TICK if on_tick or limit else None)]
            if limit and not ready and monotonic() > limit[0]:
                os.kill(pid, signal.SIGKILL)
                overdue, limit = limit, None
            if on_tick and not ready:
                on_tick()
            if signals in ready:
                number = int.from_bytes(os.read(signals, 128)[:4], sys.byteorder)
                taken.append(number)
                os.kill(pid, number)
            if fd not in ready:
                continue
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                if overdue and answer is None:  # it had not answered when it was killed
                    if on_report:
                        on_report(LIMIT, overdue[2])
                    return "error", DumpFailed(*overdue[1], code="timeout")
                return answer
            data += chunk
            while len(data) >= 4 and len(data) >= 4 + (size := int.from_bytes(data[:4], "little")):
                kind, value = _unpacked(data[4 : 4 + size])
                data = data[4 + size :]
                if kind in ("result", "error", "bug"):
                    answer = kind, value
                elif kind == LIMIT:
                    limit = (monotonic() + value[0], *value[1:]) if value else None
                elif on_report:
                    on_report(kind, value)
    finally:
        os.close(signals)


def _result(answer: tuple[str, Any] | None, status: int) -> Any:
    """What the engine returned; raises what it raised.  status: its wait status."""
    if answer is None:
        raise TorporError(
            "the engine process died",
            f"it was killed by signal {status & 0x7F}" if status & 0x7F else f"it ended with exit status {status >> 8}",
            "a tree that was to be dumped goes on, and of one that was to be restored nothing is left; try again",
            code="engine-died",
        )
    kind, value = answer
    if kind == "result":
        return value
    if kind == "error":
        raise value
    what, where = value
    raise TorporError(f"a bug in Torpor: {what}", where, "please report it with the log (-v4 -o FILE)", code="bug")
