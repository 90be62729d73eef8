# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, one after the other, until the power fails: ``power.py``, on the guest's disk.

First it looks at what the last power failure has left: of each checkpoint whether Torpor takes it for one, and the
newest complete one is restored.  The program in it (`live`) says how far it had counted and whether its memory is
whole.  It goes on, and is dumped again and again, each time into a new directory.
"""

import json
import mmap
import os
import shutil
import signal
import struct
import sys
import time

import torpor

DATA = "/data"
PID = 12000
PAGES = 512


def live() -> None:
    """Counts, and writes the count into every page of its memory; answers SIGUSR1 in DATA/answer."""
    memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
    count = 0
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
            with open(f"{DATA}/answer.new", "w") as file:
                json.dump({"count": count, "wrong": wrong}, file)
            os.rename(f"{DATA}/answer.new", f"{DATA}/answer")


def say(mark: str, **facts: object) -> None:
    sys.stdout.write(f"@@{mark} {json.dumps(facts)}\n")
    sys.stdout.flush()


def start() -> None:
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(PID - 1))
    pid = os.fork()
    if not pid:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.closerange(3, 100)
        live()
    if pid != PID:
        sys.exit(f"the program has PID {pid}")


def ask() -> dict[str, object]:
    answer = f"{DATA}/answer"
    if os.path.exists(answer):
        os.unlink(answer)
    os.kill(PID, signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while not os.path.exists(answer):
        if time.monotonic() > deadline:
            sys.exit("the program does not answer")
        time.sleep(0.01)
    with open(answer) as file:
        found: dict[str, object] = json.load(file)
    return found


def number(name: str) -> int:
    return int(name.partition("-")[2])


def main() -> None:
    found: dict[int, str] = {}
    restored: dict[str, object] | None = None
    for name in sorted((name for name in os.listdir(DATA) if name.startswith("checkpoint-")), key=number, reverse=True):
        path = f"{DATA}/{name}"
        report = torpor.check(images=path, allow_clock_jump=True)
        obstacles = [one["code"] for one in report.facts()["obstacles"]]
        # The program that is restored already has the PID; nothing else is in the way of an older checkpoint.
        complete = not [code for code in obstacles if code != "pid-taken"]
        found[number(name)] = "complete" if complete else ",".join(map(str, obstacles))
        if complete and restored is None:
            torpor.restore(path, restore_detached=True, allow_clock_jump=True)
            restored = {"checkpoint": number(name), **ask()}
        elif not complete:
            shutil.rmtree(path)
    if restored is None:
        start()
    for name in os.listdir(DATA):
        if name.startswith("checkpoint-") and restored is not None and number(name) < int(str(restored["checkpoint"])):
            shutil.rmtree(f"{DATA}/{name}")
    say("RESULT", case="after", outcome="passed", found=found, restored=restored)
    last = max(found, default=0)
    while True:
        last += 1
        os.mkdir(f"{DATA}/checkpoint-{last}", 0o700)
        say("DUMPING", number=last)
        torpor.dump(PID, f"{DATA}/checkpoint-{last}", leave_running=True)
        say("DUMPED", number=last)


main()
