# SPDX-License-Identifier: Apache-2.0
"""Programs run inside tasks that sleep, read, wait on a futex, poll or spin; each then finishes as it would have.

A spinning task proves nothing about system-call restart, a sleeping one nothing about registers: so every victim is
taken with every way to run programs.  Runs in a guest (tests/vm/test_injection.py) and on any machine as root
(``PYTHONPATH=src:tests/vm/guest python tests/vm/guest/runner.py injection``).
"""

import ctypes
import errno
import functools
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torpor.arch import native
from torpor.arch.base import RESTARTED
from torpor.engine.executor import Executor
from torpor.engine.freeze import freeze
from torpor.engine.program import Program
from torpor.engine.stepper import Stepper
from torpor.engine.team import ThreadTeam
from torpor.engine.thaw import thaw
from torpor.engine.tracee import Tracee
from torpor.kernel.syscall import NR

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
LONG = 2.5  # seconds a victim sleeps: long enough that a sleep begun anew half-way shows
HALF, LATEST = 1.2, 1.6
EARLY = 0.3  # how much earlier than one that is begun anew when the victim is let go it must end
SPIN = 1.5  # seconds a victim computes: longer than what is done to it takes
LOOK = 0.05
FUTEX_WAIT, FUTEX_WAKE = 0, 1
AT_ONCE = 5


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def timespec(seconds: float) -> Timespec:
    return Timespec(int(seconds), int(seconds % 1 * 1e9))


def raw(name: str, *args: Any) -> int:
    """A system call of our own; its result or negative errno."""
    result: int = libc.syscall(ctypes.c_long(NR[name]), *args)
    return -ctypes.get_errno() if result == -1 else result


# -- victims: what they do is timed, what comes back is reported -------------------------------------------------------
class Scene(NamedTuple):
    """What victim and test share: a pipe whose end the victim reads, a word of shared memory, two connected sockets."""

    read_end: int
    write_end: int
    word: mmap.mmap
    sockets: tuple[socket.socket, socket.socket]

    def word_address(self) -> int:
        return ctypes.addressof(ctypes.c_uint32.from_buffer(self.word))


class Victim(NamedTuple):
    act: Callable[[Scene], Any]
    wake: Callable[[Scene], object] | None  # what the test does after the injection, at once
    expect: Any
    state: str = "S"
    may_end: bool = False  # with EINTR: not every kernel tells what its call was about

    @property
    def sleeps(self) -> bool:
        """For so long: it ends by itself."""
        return self.wake is None and self.state == "S"


def _nanosleep(scene: Scene) -> int:
    return raw("nanosleep", ctypes.byref(timespec(LONG)), None)


def _clock_nanosleep(scene: Scene) -> int:
    return raw("clock_nanosleep", ctypes.c_long(1), ctypes.c_long(0), ctypes.byref(timespec(LONG)), None)


def _absolute_sleep(scene: Scene) -> int:
    end = timespec(time.monotonic() + LONG)
    return raw("clock_nanosleep", ctypes.c_long(1), ctypes.c_long(1), ctypes.byref(end), None)


def _read(scene: Scene) -> str:
    buffer = ctypes.create_string_buffer(8)
    count = raw("read", ctypes.c_long(scene.read_end), buffer, ctypes.c_long(8))
    return f"{count} {buffer.raw[: max(0, count)].decode()}"


def _futex(scene: Scene, wait: Timespec | None) -> int:
    where, timeout = ctypes.c_void_p(scene.word_address()), None if wait is None else ctypes.byref(wait)
    return raw("futex", where, ctypes.c_long(FUTEX_WAIT), ctypes.c_long(0), timeout, None, ctypes.c_long(0))


def _poll(scene: Scene, milliseconds: int) -> str:
    entry = PollFd(scene.read_end, select.POLLIN, 0)
    result = libc.poll(ctypes.byref(entry), ctypes.c_ulong(1), ctypes.c_int(milliseconds))
    return f"{result} {entry.revents} {ctypes.get_errno() if result < 0 else 0}"


def _epoll(scene: Scene) -> int:
    with select.epoll() as epoll:  # not its own poll, which hides that it was interrupted
        epoll.register(scene.read_end, select.EPOLLIN)
        events = ctypes.create_string_buffer(16)
        numbers = [ctypes.c_long(value) for value in (epoll.fileno(), 1, 60_000, 8)]
        return raw("epoll_pwait", numbers[0], events, numbers[1], numbers[2], None, numbers[3])


def _timed_read(scene: Scene) -> str:
    """A socket with a time limit: the kernel does not begin such a call again either."""
    ours = scene.sockets[0]
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 60, 0))
    buffer = ctypes.create_string_buffer(8)
    count = raw("read", ctypes.c_long(ours.fileno()), buffer, ctypes.c_long(8))
    return f"{count} {buffer.raw[: max(0, count)].decode()}"


def _spin(scene: Scene) -> str:
    first, rounds = (0.0, 0), 0
    end = time.monotonic() + SPIN
    while time.monotonic() < end:
        y, z = 1.0, 7
        for i in range(1, 60):
            y = y * 1.0000001 + i / 3.0
            z = (z * 1103515245 + i) & 0x7FFFFFFF
        if rounds and (y, z) != first:
            return f"wrong in round {rounds}"
        first = (y, z)
        rounds += 1
    return "right"


def _wake_futex(scene: Scene) -> int:
    struct.pack_into("=I", scene.word, 0, 1)
    where = ctypes.c_void_p(scene.word_address())
    return raw("futex", where, ctypes.c_long(FUTEX_WAKE), ctypes.c_long(1), None, None, ctypes.c_long(0))


def _feed(scene: Scene) -> int:
    return os.write(scene.write_end, b"hello")


VICTIMS = {
    "nanosleep": Victim(_nanosleep, None, 0),
    "clock_nanosleep": Victim(_clock_nanosleep, None, 0),
    "absolute_sleep": Victim(_absolute_sleep, None, 0),
    "read": Victim(_read, _feed, "5 hello"),
    "futex_timeout": Victim(lambda scene: _futex(scene, timespec(LONG)), None, -errno.ETIMEDOUT),
    "futex": Victim(lambda scene: _futex(scene, None), _wake_futex, 0),
    "poll_timeout": Victim(lambda scene: _poll(scene, int(LONG * 1000)), None, "0 0 0"),
    "poll": Victim(lambda scene: _poll(scene, 60000), _feed, "1 1 0"),
    "epoll": Victim(_epoll, _feed, 1),
    "timed_read": Victim(
        _timed_read, lambda scene: scene.sockets[1].send(b"hello"), "5 hello", may_end=native().name == "aarch64"
    ),
    "spin": Victim(_spin, None, "right", "R"),
}


class Running:
    """A victim that is in the middle of what it does."""

    def __init__(self, victim: Victim, threads: int = 0) -> None:
        self.victim = victim
        self.scene = Scene(*os.pipe(), mmap.mmap(-1, mmap.PAGESIZE), socket.socketpair())
        while not self._start(threads):
            print("this machine is busy: it would be over too soon, once more")
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._report)

    def _start(self, threads: int) -> bool:
        """Whether enough is left of what it does."""
        self._report, report = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._live(report, threads)
        os.close(report)
        assert select.select([self._report], [], [], 30)[0] and os.read(self._report, 1) == b"!"
        self.begun = time.monotonic()
        if not self.victim.sleeps:
            self.await_state()
            return True
        time.sleep(HALF)
        if time.monotonic() > self.begun + LATEST:
            return False
        assert self.state() == self.victim.state, f"the victim is in state {self.state()}"
        return True

    def state(self) -> str:
        with open(f"/proc/{self.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]

    def await_state(self) -> None:
        """It is in the middle of what it does when it has been in the same state at two looks."""
        seen, deadline = 0, time.monotonic() + 30
        while seen < 2:
            assert time.monotonic() < deadline, f"the victim is in state {self.state()}"
            time.sleep(LOOK)
            seen = seen + 1 if self.state() == self.victim.state else 0

    def _live(self, report: int, threads: int) -> None:
        try:
            signal.signal(signal.SIGUSR1, lambda number, frame: None)
            for _ in range(threads):
                threading.Thread(target=threading.Event().wait, args=(600,), daemon=True).start()
            os.write(report, b"!")
            begun = time.monotonic()
            try:
                result = self.victim.act(self.scene)
            except BaseException as error:
                result = repr(error)
            os.write(report, json.dumps([result, time.monotonic() - begun]).encode())
        finally:
            os._exit(0)

    def check(self, instead: int = 0, orphan: bool = False) -> None:
        """The victim must end as it would have if nobody had touched it, or with what is expected `instead`.

        An orphan goes home by sigreturn: a sleep fails with EINTR, and the time limit of a poll begins anew.
        """
        anew = time.monotonic() - self.begun + LONG  # on a slow machine, it may be late when the victim is let go
        if self.victim.wake and not instead:
            time.sleep(0.2)
            self.victim.wake(self.scene)
        assert select.select([self._report], [], [], 20)[0], "the victim does not come back from what it did"
        data = os.read(self._report, 4096)
        _, status = os.waitpid(self.pid, 0)
        assert data, f"the victim was destroyed, wait status {status:#x}"
        assert status == 0, f"the victim ended with wait status {status:#x}"
        result, seconds = json.loads(data)
        print(f"victim: {result!r} after {seconds:.2f} s")
        if instead:
            assert str(result).split()[0] == str(instead), f"{result!r} instead of {instead}"
            return
        if (orphan or self.victim.may_end) and str(errno.EINTR) in str(result):
            return
        assert result == self.victim.expect, f"{result!r} instead of {self.victim.expect!r}"
        if self.victim.sleeps:
            assert seconds >= LONG - 0.01 and (orphan or seconds < anew - EARLY), (
                f"it took {seconds:.2f} s instead of {LONG}, and begun anew it would have taken {anew:.2f}"
            )


# -- programs ----------------------------------------------------------------------------------------------------------
def exercise(run: Callable[[Program], None], pid: int) -> None:
    """Calls with no, six, referring and data arguments, and one that fails."""
    arch = native()
    program = Program()
    who = program.call("getpid")
    room = program.space(256)
    length = program.call("getcwd", room, 256)
    area = program.call("mmap", 0, 1 << 17, 3, 0x22, -1, 0)
    program.call("mprotect", area, 1 << 17, 1)
    program.call("munmap", area, 1 << 17)
    pair = program.space(8)
    program.call("socketpair", socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0, pair)
    fd = program.call("openat", -100, program.string("/proc/self/stat"), 0, 0)
    text = program.space(64)
    program.call("read", fd, text, 16)
    at = program.call("pread64", fd, text + 16, 4, 1)
    program.call("close", fd)
    bad = program.call("close", 999, may_fail=True)
    run(program)
    assert who.value == pid, f"getpid gave {who.value} in {pid}"
    cwd = room.data[: length.value].rstrip(b"\0").decode()
    assert cwd == os.readlink(f"/proc/{pid}/cwd"), cwd
    assert area.value & 0xFFF == 0 and area.value != 0
    assert text.data.startswith(f"{pid} ".encode()) and at.value == 4 and text.data[16:20] == text.data[1:5], text.data
    assert bad.value == -errno.EBADF, bad.value
    ends = struct.unpack(f"{arch.word[0]}2i", pair.data)
    again = Program()
    for end in ends:
        again.call("close", end)
    run(again)


def only_thread(pid: int) -> Tracee:
    return freeze(pid).processes[pid].threads[pid]


def areas(pid: int) -> str:
    with open(f"/proc/{pid}/maps") as maps:
        return maps.read()


def fds(pid: int) -> list[str]:
    return sorted(os.listdir(f"/proc/{pid}/fd"))


def stepped(victim: Victim) -> None:
    running = Running(victim)
    before = areas(running.pid), fds(running.pid)
    thread = only_thread(running.pid)
    thread.block_signals()
    for _ in range(3):
        assert thread.step("getpid") == running.pid
    thread.let_go()
    if victim.wake and not victim.may_end:  # the others may end meanwhile, on a slow machine
        assert (areas(running.pid), fds(running.pid)) == before
    running.check()


def stepped_program(victim: Victim) -> None:
    running = Running(victim)
    before = fds(running.pid)
    thread = only_thread(running.pid)
    stepper = Stepper(thread)
    exercise(stepper.run, running.pid)
    stepper.remove()
    thread.let_go()
    if victim.wake and not victim.may_end:
        assert fds(running.pid) == before
    running.check()


def executed(victim: Victim) -> None:
    running = Running(victim)
    before = areas(running.pid), fds(running.pid)
    thread = only_thread(running.pid)
    found = thread.registers()
    mask = thread.mask
    executor = Executor(thread)
    for _ in range(2):
        exercise(executor.run, running.pid)
    executor.remove()
    thread.let_go()
    if victim.wake and not victim.may_end:
        assert (areas(running.pid), fds(running.pid)) == before
        again = only_thread(running.pid)
        assert again.mask == mask
        now = again.registers()
        for which, data in found.others.items():
            assert now.others[which] == data, f"register set {which:#x} has changed"
        again.let_go()
    running.check()


def untouched(victim: Victim) -> None:
    """Stopped and let go, nothing run: what an EINTR or a late sleep of the others has to be compared with."""
    running = Running(victim)
    thread = only_thread(running.pid)
    thread.registers()
    thread.let_go()
    running.check()


def caught(victim: Victim) -> None:
    """A signal comes while the victim is stopped, and it has a handler: its call ends, it is not made again."""
    running = Running(victim)
    thread = only_thread(running.pid)
    stepper = Stepper(thread)
    exercise(stepper.run, running.pid)
    stepper.remove()
    os.kill(running.pid, signal.SIGUSR1)
    thread.let_go()
    running.check(-errno.EINTR)


def orphaned(victim: Victim) -> None:
    """The controller is killed while its executor waits: the victim goes home by itself."""
    running = Running(victim)
    controller = os.fork()
    if not controller:
        executor = Executor(only_thread(running.pid))
        exercise(executor.run, running.pid)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(controller, 0)[1] == signal.SIGKILL
    running.check(orphan=True)


def team(victim: Victim) -> None:
    """Programs in all threads of a process at once."""
    running = Running(victim, threads=5)
    process = freeze(running.pid).processes[running.pid]
    leader = process.threads[running.pid]
    executor = Executor(leader)
    others = [thread for tid, thread in process.threads.items() if tid != running.pid]
    assert len(others) == 5
    crew = ThreadTeam(executor)
    programs, asked = {}, {}
    for thread in others:
        program = Program()
        asked[thread] = program.call("gettid")
        programs[thread] = program
    crew.run(programs)
    for thread, answer in asked.items():
        assert answer.value == thread.tid
    crew.close()
    executor.remove()
    thaw(process.threads.values())
    running.check()


def core_message(victim: Victim) -> None:
    """All registers go into an image's core message and come out of it again."""
    from torpor.images.schema.core import CoreEntry

    arch = native()
    running = Running(victim)
    thread = only_thread(running.pid)
    registers = thread.registers()
    core = CoreEntry(mtype=0)
    arch.to_core(core, registers, 0x12345678)
    back, address = arch.from_core(CoreEntry.decode(core.encode()), registers)
    assert address == 0x12345678
    # Where x86_64 says in the message how a call was interrupted, what comes out is what was found.
    orig_rax = 8 * 15
    tells = arch.name == "x86_64" and struct.unpack_from("<Q", registers.general, orig_rax)[0] >> 32 in RESTARTED
    assert back.general == (thread.general if tells else registers.general)
    assert {k: v for k, v in back.others.items() if k not in arch.extra} == {
        k: v for k, v in registers.others.items() if k not in arch.extra
    }
    extras = arch.extras(registers)
    assert arch.extras(arch.with_extras(back, extras, registers)) == extras
    thread.let_go()
    running.check()


def kernel() -> None:
    """Says in the report where this ran."""
    print(os.uname().release, os.uname().machine, "pages of", mmap.PAGESIZE)


CASES: dict[str, Callable[[], None]] = {"kernel": kernel}
for _way in (untouched, stepped, stepped_program, executed, orphaned):
    for _name, _victim in VICTIMS.items():
        CASES[f"{_way.__name__}-{_name}"] = functools.partial(_way, _victim)
for _name in ("epoll", "timed_read"):
    CASES[f"caught-{_name}"] = functools.partial(caught, VICTIMS[_name])
CASES["team-read"] = functools.partial(team, VICTIMS["read"])
CASES["team-spin"] = functools.partial(team, VICTIMS["spin"])
CASES["core_message-read"] = functools.partial(core_message, VICTIMS["read"])

if __name__ == "__main__":
    sys.exit("run this by runner.py")
