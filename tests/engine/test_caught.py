# SPDX-License-Identifier: Apache-2.0
"""Which processes the guardian keeps from coming back from epoll_wait(2) and the like, when the engine, here the test,
has died: those that do not notice how."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import pytest

from harness.events import child
from torpor.arch import s390x, x86_64
from torpor.arch.base import Arch
from torpor.engine import caught, journal, stops, timelimit
from torpor.engine import rescue as rescuing
from torpor.engine.holding import Hold
from torpor.engine.ledger import Ledger
from torpor.engine.rescue import Rescue
from torpor.engine.seizing import OPTIONS
from torpor.engine.thaw import thaw_somehow
from torpor.engine.tracee import Tracee
from torpor.kernel import ptrace
from torpor.kernel.inside import parse_call

if os.geteuid():
    pytest.skip("tracing needs root", allow_module_level=True)

# Python itself would begin the call again.
VICTIM = """
import ctypes, os, select, signal, sys, threading
exec(sys.argv[1])
libc, poll, place = ctypes.CDLL(None, use_errno=True), select.epoll(), ctypes.create_string_buffer(64)
def wait():
    print("came back", libc.epoll_wait(poll.fileno(), place, 1, -1), ctypes.get_errno(), flush=True)
threading.Thread(target=wait).start()
print("ready", flush=True)
wait()
"""
BLOCKS = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])"
CATCHES = "signal.signal(signal.SIGCONT, lambda *_: print('continued', flush=True))"


said: dict[int, int] = {}  # of victims: descriptors of what they say


def tids_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def state(pid: int, tid: int) -> str:
    with open(f"/proc/{pid}/task/{tid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


def wait_for(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + 20
    while {state(pid, tid) for tid in tids_of(pid)} != {wanted}:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def victim(does: str = "", job: bool = False) -> Iterator[int]:
    """A process with two threads in epoll_wait(2); a job of ours, as a shell has them, or in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, does],
        stdout=subprocess.PIPE, start_new_session=not job, process_group=0 if job else None,
    )  # fmt: skip
    assert process.stdout
    try:
        assert process.stdout.readline() == b"ready\n"
        said[process.pid] = process.stdout.fileno()
        wait_for(process.pid, "S")
        yield process.pid
    finally:
        process.kill()
        for tid in tids_of(process.pid):
            if tid != process.pid:
                with suppress(ChildProcessError):
                    os.waitpid(tid, stops.WALL)
        process.wait()
        process.stdout.close()


def seized(pid: int) -> Hold:
    """The guardian of us who have seized and stopped the process, and heard of no stop yet."""
    for tid in tids_of(pid):
        ptrace.seize(tid, 0)
        ptrace.interrupt(tid)
    wait_for(pid, "t")
    return Hold(os.getpid(), Ledger())


def hold(pid: int) -> None:
    """Seize and stop the first thread of another process, as an engine would that has let the others go already."""
    ptrace.seize(pid, OPTIONS)
    ptrace.interrupt(pid)
    os.waitpid(pid, stops.WALL)


def dies_holding(pid: int) -> None:
    """An engine that dies while it holds the first thread is rescued from: the process says nothing of it."""
    with child(lambda: hold(pid)) as dying:
        rescue = Rescue(dying)
        rescue.ledger.read_seizing(pid)
        rescue.before_release()
        assert rescue.hold.caught == {pid}
        os.kill(dying, signal.SIGKILL)
        rescue.run()
    wait_for(pid, "S")
    assert not select.select([said[pid]], [], [], 0.05)[0], os.read(said[pid], 100)


def step(pid: int) -> None:
    """The same, between two calls that it steps in that thread."""
    journal.note("seizing", pid)
    hold(pid)
    tracee = Tracee(pid, pid)
    tracee.block_signals()
    tracee.step("getpid")


def pending(pid: int, number: int = signal.SIGSTOP) -> list[bool]:
    """Of each thread, whether it has been sent that signal."""
    found = []
    for tid in tids_of(pid):
        with open(f"/proc/{pid}/task/{tid}/status") as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith("SigPnd:")]
        found.append(bool(masks[0] & 1 << number - 1))
    return found


def test_is_caught() -> None:
    with victim() as pid:
        hold = seized(pid)
        hold.catch(pid)
        assert hold.caught == hold.pids == {pid} and not hold.to_be_stopped
        assert pending(pid) == [True, True]


def test_has_taken_no_stop_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guardian comes before any thread has run: no thread that it lets go may be stopped by another that takes its
    SIGSTOP afterwards."""

    def thaw_slowly(threads: Iterable[Tracee]) -> None:
        for thread in reversed([*threads]):
            thaw_somehow([thread])
            time.sleep(0.02)  # it is back in its call

    monkeypatch.setattr(Ledger, "read", lambda _: None)  # we keep no journal
    monkeypatch.setattr(rescuing, "_PAUSE_S", 0)  # it keeps the processor
    monkeypatch.setattr(rescuing, "thaw_somehow", thaw_slowly)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(before)])
    try:
        with victim("os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))") as pid:
            for _ in range(4):
                dies_holding(pid)
                assert pending(pid) == [False, False]
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("does", ["", BLOCKS, CATCHES], ids=["", "blocks", "catches"])
def test_learns_nothing(monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """Neither its calls nor its handler tell it, and no SIGCONT is left."""
    monkeypatch.setattr(Ledger, "read", lambda _: None)  # we keep no journal
    with victim(does) as pid:
        for _ in range(4):
            dies_holding(pid)
            assert pending(pid) == pending(pid, signal.SIGCONT) == [False, False]


def test_is_stepped() -> None:
    """SIGSTOP for a thread that was being stepped ends calls of the others, too, which the engine had let go."""
    with victim() as pid:
        for _ in range(4):
            journal.open_journal()
            with child(lambda: step(pid)) as dying:
                rescue = Rescue(dying)
                rescue.before_release()
                assert rescue.hold.pids == {pid} and not rescue.hold.caught
                os.kill(dying, signal.SIGKILL)
                rescue.run()
            journal.close_journal()
            wait_for(pid, "S")
            assert not select.select([said[pid]], [], [], 0.05)[0], os.read(said[pid], 100)
            assert pending(pid) == pending(pid, signal.SIGCONT) == [False, False]


def test_keeps_its_own_sigcont(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "read", lambda _: None)
    with victim(BLOCKS) as pid:
        os.kill(pid, signal.SIGCONT)
        with child(lambda: hold(pid)) as dying:
            rescue = Rescue(dying)
            rescue.ledger.read_seizing(pid)
            rescue.before_release()
            os.kill(dying, signal.SIGKILL)
            rescue.run()
        assert True in pending(pid, signal.SIGCONT)


def test_a_shell_would_tell() -> None:
    with victim(job=True) as pid:
        hold = seized(pid)
        hold.catch(pid)
        assert not hold.caught and pending(pid) == [False, False]


@pytest.mark.parametrize("heard", [False, True], ids=["", "its-parent-has-heard"])
def test_stays_stopped(heard: bool) -> None:
    """What job control had stopped before we came must not be continued; no other sign is there."""
    with victim() as pid:
        os.kill(pid, signal.SIGSTOP)
        wait_for(pid, "T")
        if heard:
            os.waitid(os.P_PID, pid, os.WSTOPPED)
        hold = seized(pid)
        assert all(caught.is_halting(pid, tid) for tid in tids_of(pid))
        hold.catch(pid)
        assert not hold.caught and not hold.pids


def test_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As /proc/TID/syscall tells them."""

    def is_ended(said: bytes) -> bool:
        return caught.is_in_ended_call(os.getpid(), parse_call(said))

    monkeypatch.setattr(caught, "native", lambda: x86_64.ARCH)
    assert is_ended(b"232 0x3 0x7f00 0x1 0xffffffff 0x0 0x0 0x7ffc 0x7f01\n")  # epoll_wait
    for said in (b"0 0x3e8 0x7f00 0x1 0x0 0x0 0x0 0x7ffc 0x7f01\n", b"running\n", b"-1 0x7ffc 0x7f01\n"):
        assert not is_ended(said)
    monkeypatch.setattr(caught, "native", lambda: s390x.ARCH)
    ipc = s390x.ARCH.SYSCALLS["ipc"]
    assert is_ended(b"%d 0x4 0x0 0x1 0x0 0x3ff 0x0 0x3ff 0x2aa\n" % ipc)  # SEMTIMEDOP
    assert not is_ended(b"%d 0xc 0x0 0x1 0x0 0x3ff 0x0 0x3ff 0x2aa\n" % ipc)  # MSGRCV


@pytest.mark.parametrize("arch", [x86_64.ARCH, s390x.ARCH], ids=["", "socketcall"])
@pytest.mark.parametrize(("option", "receives"), [(socket.SO_RCVTIMEO, True), (socket.SO_SNDTIMEO, False)])
def test_sockets_with_a_time_limit(arch: Arch, option: int, receives: bool) -> None:
    """A limit for receiving ends no sending, and the other way round; no other file is looked at."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", 60, 0))

        def is_limited(name: str, by_number: int, fd: int) -> bool:
            def read(address: int, length: int) -> bytes:
                assert (address, length) == (0x7000, 8)
                return struct.pack(arch.word, fd)

            number = arch.SYSCALLS.get("socketcall")
            if number is None:
                return timelimit.has_time_limit(arch, os.getpid(), arch.SYSCALLS[name], (fd, 0, 0, 0, 0, 0), read)
            return timelimit.has_time_limit(arch, os.getpid(), number, (by_number, 0x7000, 0, 0, 0, 0), read)

        assert is_limited("recvfrom", 12, ours.fileno()) == receives
        assert is_limited("sendto", 11, ours.fileno()) == (not receives)
        assert not is_limited("recvfrom", 12, theirs.fileno()) and not is_limited("recvfrom", 12, 0)
        assert not is_limited("close", 13, ours.fileno())
