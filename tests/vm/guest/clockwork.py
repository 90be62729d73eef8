# SPDX-License-Identifier: Apache-2.0
"""A tree of busy programs that watch their clocks: ``clockwork.py DIR``.  It is dumped, and restored elsewhere.

One child reads every clock that counts from the boot as fast as it can, through the vDSO and by system calls, which
have to agree; another answers pings over a socket pair; a third is inside a signal handler, from which it returns only
when the kernel is another, by a frame that the one before has made; a fourth is DIR/vdso_calls (vdso_calls.c), where
that is.  The root has a thread that waits for deadlines on the monotonic clock, and an interval timer.  All count what
they do in a file that they share.  At SIGTERM, the root ends its children and writes what was wrong, if anything, to
DIR/result.
"""

import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
CLOCK_GETTIME = {"x86_64": 228, "aarch64": 113, "armv7l": 263, "ppc64le": 246, "s390x": 260}[os.uname().machine]
RT_SIGACTION = 174  # of 32-bit ARM
FINE = {"monotonic": 1, "boottime": 7, "raw": 4, "realtime": 0}
COARSE = {"coarse": 6}
BUSY, PINGS, WAITS, TICKS, RETURNS = range(5)  # words of the shared file; vdso_calls.c has the next


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Counters:
    """Words in DIR/counters that every process counts in."""

    def __init__(self, directory: str) -> None:
        fd = os.open(f"{directory}/counters", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, mmap.PAGESIZE)
        self.map = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)

    def add(self, which: int) -> None:
        (value,) = struct.unpack_from("=Q", self.map, 8 * which)
        struct.pack_into("=Q", self.map, 8 * which, value + 1)


def read(which: int, through_vdso: bool) -> int:
    """Nanoseconds, from libc (and so the vDSO) or from the kernel."""
    now = Timespec()
    at = ctypes.byref(now)
    if through_vdso:
        result = libc.clock_gettime(which, at)
    else:
        result = libc.syscall(ctypes.c_long(CLOCK_GETTIME), ctypes.c_long(which), at)
    if result:
        raise OSError(ctypes.get_errno(), "clock_gettime")
    return int(now.seconds) * 10**9 + int(now.nanoseconds)


def watch(counters: Counters, wrong: list[str]) -> None:
    """One round over all clocks."""
    for name, which in FINE.items():
        before, through, after = read(which, False), read(which, True), read(which, False)
        if not before <= through <= after:
            wrong.append(f"{name}: the vDSO says {through}, the kernel {before} to {after}")
    for name, which in COARSE.items():
        before, through, after = read(which, True), read(which, False), read(which, True)
        if not before <= through <= after:
            wrong.append(f"{name}: the kernel says {through}, the vDSO {before} to {after}")
    counters.add(BUSY)


def busy(counters: Counters, ended: list[int]) -> list[str]:
    wrong: list[str] = []
    os.nice(19)
    cpus = range(os.cpu_count() or 1)
    last = {which: read(which, True) for which in (*FINE.values(), *COARSE.values())}
    while not ended and len(wrong) < 20:
        for name, which in {**FINE, **COARSE}.items():
            for _ in range(20):
                now = read(which, True)
                if now < last[which] and which != 0:
                    wrong.append(f"{name} went back from {last[which]} to {now}")
                last[which] = now
        watch(counters, wrong)
        before, now_in_seconds, after = read(0, False), time.time(), read(0, False)
        if not before / 1e9 - 1e-3 <= now_in_seconds <= after / 1e9 + 1e-3:
            wrong.append(f"time() says {now_in_seconds}, the kernel {before} to {after}")
        if (cpu := libc.sched_getcpu()) not in cpus:
            wrong.append(f"getcpu() says {cpu}, of {cpus}")
    return wrong


def answer(counters: Counters, end: socket.socket, ended: list[int]) -> list[str]:
    wrong: list[str] = []
    end.settimeout(0.2)
    while not ended:
        try:
            data = end.recv(100)
        except TimeoutError:
            continue
        if not data:
            break
        end.send(data)
        counters.add(PINGS)
    return wrong


def wait_for_deadlines(counters: Counters, ended: list[int]) -> list[str]:
    """Deadlines on the monotonic clock, computed before the dump and due after the restore, too."""
    wrong: list[str] = []
    never = threading.Event()
    while not ended:
        begun = time.monotonic()
        never.wait(0.1)
        if time.monotonic() - begun < 0.099:
            wrong.append(f"a wait of 0.1 s took {time.monotonic() - begun:.3f} s")
        counters.add(WAITS)
    return wrong


def handle(counters: Counters, ended: list[int]) -> list[str]:
    """Python's own handlers run outside the kernel's signal frame: this one is libc's."""

    def inside(number: int) -> None:
        kernel = os.uname().release
        while not ended and os.uname().release == kernel:
            time.sleep(0.02)

    def outside(number: int) -> None:
        libc["raise"](signal.SIGUSR2)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(inside)
    outer = ctypes.CFUNCTYPE(None, ctypes.c_int)(outside)
    if os.uname().machine == "armv7l":  # where a handler that names no way back returns by code of the kernel's
        action = struct.pack("=3LQ", ctypes.cast(handler, ctypes.c_void_p).value, 0, 0, 0)
        if libc.syscall(RT_SIGACTION, int(signal.SIGUSR2), action, None, 8):
            raise OSError(ctypes.get_errno(), "rt_sigaction")
    else:
        libc.signal(signal.SIGUSR2, handler)
    libc.signal(signal.SIGUSR1, outer)
    while not ended:
        libc["raise"](signal.SIGUSR1)
        counters.add(RETURNS)
    return []


def child(work: "ctypes._NamedFuncPointer | object", directory: str, name: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ended: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0)
        wrong = work(ended)  # type: ignore[operator]
        with open(f"{directory}/{name}", "w") as file:
            json.dump(wrong, file)
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    directory = sys.argv[1]
    counters = Counters(directory)
    ours, theirs = socket.socketpair()
    children = {
        "busy": child(lambda ended: busy(counters, ended), directory, "busy"),
        "answer": child(lambda ended: answer(counters, theirs, ended), directory, "answer"),
        "handle": child(lambda ended: handle(counters, ended), directory, "handle"),
    }
    if os.path.exists(program := f"{directory}/vdso_calls"):
        children["calls"] = child(lambda ended: os.execv(program, [program, directory]), directory, "calls")
    theirs.close()
    ended: list[int] = []
    wrong: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    signal.signal(signal.SIGALRM, lambda *_: counters.add(TICKS))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    thread = threading.Thread(target=lambda: wrong.extend(wait_for_deadlines(counters, ended)))
    thread.start()
    number = 0
    last = time.monotonic()
    while not ended:
        number += 1
        ours.send(b"%d" % number)
        if ours.recv(100) != b"%d" % number:
            wrong.append(f"ping {number} was answered wrongly")
        time.sleep(0.02)
        now = time.monotonic()
        if now < last:
            wrong.append(f"time.monotonic() went back from {last} to {now}")
        last = now
    thread.join()
    result = {"root": wrong}
    for name, pid in children.items():
        os.kill(pid, signal.SIGTERM)
        status = os.waitpid(pid, 0)[1]
        with open(f"{directory}/{name}") as file:
            result[name] = json.load(file) + ([f"status {status}"] if status else [])
    with open(f"{directory}/result.new", "w") as file:
        json.dump(result, file)
    os.rename(f"{directory}/result.new", f"{directory}/result")


main()
