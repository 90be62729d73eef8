# SPDX-License-Identifier: Apache-2.0
"""Checkpoints to the guest's disk, one after the other, until the power fails.

The guest is saved before it has seen the disk and resumed for each failure (`vmlab.saved`); what must not be the same
each time comes as a line of JSON on the console.  First it looks at what the last failure has left: of each checkpoint
whether Torpor takes it for one; each of those that it takes for complete is restored, the newest last.  The program in
it says which checkpoint it is, how far it had counted, whether its memory is whole, and what is in its file.  The
newest goes on, and is dumped again and again, either into a new directory, after which the old one is removed, or into
two in turn.
"""

import mmap
import os
import signal
import struct
import sys
import time

DATA, ANSWER, NUMBER = "/data", "/run/answer", "/run/number"
OWN = DATA + "/own"  # the program's file
PID = 12000
PAGES = 512
RNDRESEEDCRNG = 0x5207
VIRTIO = "/sys/bus/virtio"


def live() -> None:
    """Counts, and writes the count into every page of its memory.  At SIGUSR1 it says in ANSWER which number it was
    given before, its count, how many pages are wrong, and which number is in each half of its file, and takes the
    number in NUMBER.  It writes that to its file, without fsync: by write(2) to one half, by a mapping to the other."""
    file_fd = os.open(OWN, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file_fd, 2 * mmap.PAGESIZE)
    mapping = mmap.mmap(file_fd, mmap.PAGESIZE, offset=mmap.PAGESIZE)
    memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
    count = number = 0
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
    while True:
        for page in range(PAGES):
            struct.pack_into("=QQ", memory, page * mmap.PAGESIZE + 2048, count, page)
        count += 1
        if asked:
            asked.clear()
            found = [struct.unpack_from("=QQ", memory, page * mmap.PAGESIZE + 2048) for page in range(PAGES)]
            wrong = [page for page, content in enumerate(found) if content != (count - 1, page)]
            (written,) = struct.unpack("=Q", os.pread(file_fd, 8, 0))
            (mapped,) = struct.unpack_from("=Q", mapping)
            with open(ANSWER + ".new", "w") as file:
                file.write(f"{number} {count} {len(wrong)} {written} {mapped}")
            with open(NUMBER) as file:
                number = int(file.read())
            if number:  # else it is only looked at; older ones must not write to what newer ones remember
                os.pwrite(file_fd, struct.pack("=Q", number), 0)
                struct.pack_into("=Q", mapping, 0, number)
            os.rename(ANSWER + ".new", ANSWER)
        time.sleep(0.05)  # whoever dumps it has the same processor


if sys.argv[1:] == ["live"]:
    live()

import ctypes  # noqa: E402 - what follows is not for the program that is dumped
import fcntl  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import pkgutil  # noqa: E402
import select  # noqa: E402
from collections.abc import Callable  # noqa: E402

import phases  # noqa: E402
from phases import say  # noqa: E402

import torpor  # noqa: E402

libc = ctypes.CDLL(None, use_errno=True)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def start() -> None:
    write("/proc/sys/kernel/ns_last_pid", str(PID - 1))
    pid = os.fork()
    if not pid:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.closerange(3, 100)
        os.execv("/usr/bin/python3.11", ["python3.11", "-ISB", "/t/power.py", "live"])
    if pid != PID:
        sys.exit(f"the program has PID {pid}")
    wait_for("the program has begun", lambda: int(_of("SigCgt"), 16) >> (signal.SIGUSR1 - 1) & 1)


def _of(name: str) -> str:
    """A line of the program's /proc/PID/status."""
    with open(f"/proc/{PID}/status") as file:
        return file.read().partition(f"\n{name}:")[2].partition("\n")[0].strip()


def wait_for(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            state = _of("State") if os.path.exists(f"/proc/{PID}") else "there is none"
            sys.exit(f"waited a minute, in vain, until {what}; the program: {state}")
        time.sleep(0.005)


def ask(number: int) -> dict[str, int]:
    """What the program says of itself; it is checkpoint `number` from now on."""
    if os.path.exists(ANSWER):
        os.unlink(ANSWER)
    write(NUMBER, str(number))
    os.kill(PID, signal.SIGUSR1)
    wait_for("the program has answered", lambda: os.path.exists(ANSWER))
    with open(ANSWER) as file:
        return dict(zip(("number", "count", "wrong", "written", "mapped"), map(int, file.read().split()), strict=True))


def end() -> None:
    os.kill(PID, signal.SIGKILL)
    wait_for("the program has ended", lambda: not os.path.exists(f"/proc/{PID}"))


def remove(path: str, first: bool = False) -> None:
    """As rm -r does.  `first`: inventory.img, and that on the disk before the others (docs/questions.md): with
    data=writeback ext4 gives the blocks of files away that are still there if the power fails now."""
    if first and os.path.exists(f"{path}/inventory.img"):
        os.unlink(f"{path}/inventory.img")
        directory = os.open(path, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
    os.rmdir(path)


def resumed() -> dict[str, object]:
    """Whatever must not be as it was when the guest was saved; then the disk.  Returns what we are told."""
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        say("SAVE")  # what is sent before the guest runs again is lost
    told: dict[str, object] = json.loads(sys.stdin.readline())
    time.clock_settime(time.CLOCK_REALTIME, float(str(told["time"])))
    with open("/dev/urandom", "r+b", buffering=0) as file:
        file.write(bytes.fromhex(str(told["entropy"])))
        fcntl.ioctl(file, RNDRESEEDCRNG)
    (device,) = os.listdir(VIRTIO + "/devices")
    write(VIRTIO + "/drivers/virtio_blk/bind", device)
    wait_for("the disk is there", lambda: os.path.exists("/dev/vda"))
    os.mkdir(DATA)
    if libc.mount(b"/dev/vda", DATA.encode(), b"ext4", 0, str(told["options"]).encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    return told


def newest_last() -> list[str]:
    """The directories of checkpoints, by the time of their inventory.img, those without any first."""

    def made(name: str) -> int:
        path = f"{DATA}/{name}/inventory.img"
        return os.stat(path).st_mtime_ns if os.path.exists(path) else 0

    return sorted((name for name in os.listdir(DATA) if name.startswith("checkpoint-")), key=made)


def look() -> None:
    """At what the last failure has left; afterwards the program runs, and only complete checkpoints are there."""
    found: dict[str, object] = {}
    restored = ""
    complete: list[str] = []
    for name in newest_last():
        report = torpor.check(images=f"{DATA}/{name}", allow_clock_jump=True)
        if obstacles := report.facts()["obstacles"]:
            found[name] = ",".join(str(one["code"]) for one in obstacles)
        else:
            complete.append(name)
    for name in complete:
        if restored:
            end()
        torpor.restore(f"{DATA}/{name}", restore_detached=True, allow_clock_jump=True)
        found[name], restored = ask(0), name
    if not restored:
        start()
    with open("/proc/sys/kernel/random/boot_id") as file:
        say("FOUND", found=found, restored=restored, boot=file.read().strip())
    for name, what in found.items():
        if isinstance(what, str):
            remove(f"{DATA}/{name}")


def checkpoint(number: int, replace: bool, first: bool) -> None:
    others = newest_last()
    phases.enter(phases.BEGIN)
    name = others[0] if replace and len(others) > 1 else f"checkpoint-{number}"
    say("DUMPING", number=number, directory=name)
    if name not in others:
        os.mkdir(f"{DATA}/{name}", 0o700)
    torpor.dump(PID, f"{DATA}/{name}", leave_running=True)
    say("DUMPED", number=number)
    if not replace:
        for other in others:
            say("REMOVING", directory=other)
            phases.enter(phases.REMOVING)
            remove(f"{DATA}/{other}", first)
    phases.enter(phases.BETWEEN)


def main() -> None:
    for module in pkgutil.walk_packages(torpor.__path__, "torpor."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)  # once, and not after each failure
    gc.freeze()
    # The driver is there, but does not look at the disk before it is told to.
    write(VIRTIO + "/drivers_autoprobe", "0")
    pid = os.posix_spawn("/usr/sbin/modprobe", ["modprobe", "virtio_blk"], dict(os.environ))
    if os.waitpid(pid, 0)[1]:
        sys.exit("no virtio_blk")
    told = resumed()
    look()
    pause = told["pause"]
    phases.follow(tuple(pause) if isinstance(pause, list) else None, bool(told["sync"]), bool(told["hint"]))
    number = int(str(told["number"]))
    while True:
        number += 1
        ask(number)
        checkpoint(number, bool(told["replace"]), "data=writeback" in str(told["options"]))


main()
