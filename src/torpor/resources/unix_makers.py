# SPDX-License-Identifier: Apache-2.0
"""Who makes a UNIX socket's connection: SO_PEERCRED remembers him for ever.

The kernel notes PID, effective uid and gid of whoever calls socketpair(2), listen(2) or connect(2).  So these calls are
made inside the task with that PID, with these ids, where it is in the tree; else by Torpor, with these ids: then
SO_PEERCRED shows a PID that is gone.  CRIU's images do not say who it was: a holder of the socket is taken.

A task that gave up its effective uid keeps fsuid 0, so that it may still write to any socket's file.
"""

import os
import struct

from torpor.engine.program import Load32, Program
from torpor.kernel.syscall import call
from torpor.resources.unix_names import AF_UNIX, Address
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.engine.executor import Executor
    from torpor.resources.context import Restore

SAME = (1 << 32) - 1  # setresuid(2): leave it
SOCK_CLOEXEC = os.O_CLOEXEC


class Who(NamedTuple):
    """A process and its effective ids at that time."""

    pid: int
    uid: int
    gid: int


class Makers:
    """Makes connections in somebody's name."""

    def __init__(self, restore: "Restore") -> None:
        self.restore = restore
        self._pidfds: dict[int, int] = {}

    def close(self) -> None:
        for fd in self._pidfds.values():
            os.close(fd)
        self._pidfds.clear()

    def _runner(self, who: Who | None) -> "Executor | None":
        task = self.restore.tasks.get(who.pid) if who is not None else None
        return None if task is None or task.dead else task.runner

    def pair(self, kind: int, who: Who | None) -> tuple[int, int]:
        """socketpair(2)."""
        runner = self._runner(who)
        if runner is None or who is None:
            ends = _Numbers()
            with _Ids(who):
                call("socketpair", AF_UNIX, kind | SOCK_CLOEXEC, 0, ends.pointer)
            return ends.values
        program = Program()
        pair = program.space(8)
        with _IdsInside(program, who):
            program.call("socketpair", AF_UNIX, kind | SOCK_CLOEXEC, 0, pair)
        runner.run(program)
        first, second = struct.unpack("=2i", pair.data)
        pidfd = self._pidfds.get(who.pid, -1)
        if pidfd < 0:
            pidfd = self._pidfds[who.pid] = call("pidfd_open", who.pid, 0)
        ours = call("pidfd_getfd", pidfd, first, 0), call("pidfd_getfd", pidfd, second, 0)
        program = Program()
        program.call("close", first)
        program.call("close", second)
        runner.run(program)
        return ours

    def listen(self, fd: int, backlog: int, who: Who | None) -> None:
        """listen(2); may be called again, by another."""
        runner = self._runner(who)
        if runner is None or who is None:
            with _Ids(who):
                call("listen", fd, backlog)
            return
        program = Program()
        number = Load32(runner.send_fds(program, [fd]))
        with _IdsInside(program, who):
            program.call("listen", number, backlog)
        program.call("close", number)
        runner.run(program)

    def connect(self, fd: int, name: bytes, handle: int, who: Who | None) -> None:
        """connect(2) to an abstract name, or to the socket file behind a handle."""
        runner = self._runner(who)
        if runner is None or who is None:
            address = Address(name if handle < 0 else b"/proc/self/fd/%d" % handle)
            with _Ids(who):
                call("connect", fd, address.pointer, address.length)
            return
        fds = [fd] if handle < 0 else [fd, handle]
        program = Program()
        numbers = runner.send_fds(program, fds)
        runner.run(program)
        received = struct.unpack_from(f"={len(fds)}i", numbers.root.data, numbers.offset)
        raw = Address(name if handle < 0 else b"/proc/self/fd/%d" % received[1]).raw
        program = Program()
        with _IdsInside(program, who):
            program.call("connect", received[0], program.put(raw), len(raw))
        for number in received:
            program.call("close", number)
        runner.run(program)


class _Numbers:
    """Two descriptors in memory."""

    def __init__(self) -> None:
        import ctypes

        self._buffer = ctypes.create_string_buffer(8)
        self.pointer = ctypes.addressof(self._buffer)

    @property
    def values(self) -> tuple[int, int]:
        first, second = struct.unpack("=2i", self._buffer.raw)
        return first, second


class _Ids:
    """Somebody's effective ids for a moment, for this thread."""

    def __init__(self, who: Who | None) -> None:
        self.who = who if who is not None and (who.uid, who.gid) != (os.geteuid(), os.getegid()) else None

    def __enter__(self) -> None:
        if self.who is not None:
            self.was = os.getresuid(), os.getresgid()
            call("setresgid", SAME, self.who.gid, SAME)
            call("setresuid", SAME, self.who.uid, SAME)
            call("setfsuid", self.was[0][1])

    def __exit__(self, *_: object) -> None:
        if self.who is not None:
            call("setresuid", *self.was[0])
            call("setresgid", *self.was[1])


class _IdsInside:
    """The same in a task, which has Torpor's own ids at this time."""

    def __init__(self, program: Program, who: Who) -> None:
        self.program, self.who = program, who
        self.needed = (who.uid, who.gid) != (os.geteuid(), os.getegid())

    def __enter__(self) -> None:
        if self.needed:
            self.program.call("setresgid", SAME, self.who.gid, SAME)
            self.program.call("setresuid", SAME, self.who.uid, SAME)
            self.program.call("setfsuid", os.geteuid())

    def __exit__(self, *_: object) -> None:
        if self.needed:
            self.program.call("setresuid", *os.getresuid())
            self.program.call("setresgid", *os.getresgid())
