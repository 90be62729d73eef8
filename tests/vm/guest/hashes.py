# SPDX-License-Identifier: Apache-2.0
"""POWER10 hashes return addresses with a key that each process has by chance: ``hashes.py checkpoint`` dumps and
restores a process, and compares its key, and what it has set of its DEXCR.  ``hashes.py DIR`` is that process.
QEMU keeps nothing of the DEXCR but what is for the next program.
"""

import ctypes
import os
import sys
import threading
import time

PR_PPC_GET_DEXCR, PR_PPC_SET_DEXCR, SRAPD, NPHIE = 72, 73, 2, 3
CLEAR, SET_ONEXEC, CLEAR_ONEXEC = 4, 8, 16
NT_PPC_HASHKEYR = 0x112
libc = ctypes.CDLL(None)


def control(aspect: int) -> int:
    return int(libc.prctl(PR_PPC_GET_DEXCR, aspect, 0, 0, 0)) & ~1  # which says that it can be set


def program(directory: str) -> None:
    libc.prctl(PR_PPC_SET_DEXCR, SRAPD, SET_ONEXEC, 0, 0)
    up, go = threading.Event(), threading.Event()
    wrong: list[str] = []

    def other() -> None:
        libc.prctl(PR_PPC_SET_DEXCR, SRAPD, CLEAR_ONEXEC, 0, 0)
        libc.prctl(PR_PPC_SET_DEXCR, NPHIE, SET_ONEXEC, 0, 0)
        up.set()
        go.wait()
        if (control(SRAPD), control(NPHIE)) != (CLEAR | CLEAR_ONEXEC, CLEAR | SET_ONEXEC):
            wrong.append(f"the thread has {control(SRAPD)} and {control(NPHIE)}")

    thread = threading.Thread(target=other)
    thread.start()
    up.wait()
    with open(f"{directory}/holding", "w") as file:
        file.write("yes")
    while not os.path.exists(f"{directory}/go"):
        time.sleep(0.05)
    if (control(SRAPD), control(NPHIE)) != (CLEAR | SET_ONEXEC, CLEAR | CLEAR_ONEXEC):
        wrong.append(f"it has {control(SRAPD)} and {control(NPHIE)}")
    go.set()
    thread.join()
    with open(f"{directory}/result.new", "w") as file:
        file.write("; ".join(wrong) or "right")
    os.rename(f"{directory}/result.new", f"{directory}/result")


def key(pid: int) -> bytes:
    from torpor.engine import stops
    from torpor.kernel import ptrace

    ptrace.seize(pid, 0)
    ptrace.interrupt(pid)
    stops.wait(pid)
    found = ptrace.get_regset(pid, NT_PPC_HASHKEYR)
    ptrace.detach(pid)
    return found


def checkpoint() -> None:
    import update

    update.begin("hashes.py", "holding")
    before = key(update.ROOT_PID)
    update.dump()
    os.waitpid(update.ROOT_PID, 0)
    update.torpor("check")
    update.torpor("restore", "-d")
    if (now := key(update.ROOT_PID)) != before:
        sys.exit(f"its key was {before.hex()}, and is {now.hex()}")
    open(f"{update.DATA}/go", "w").close()
    deadline = time.monotonic() + 60
    while not os.path.exists(f"{update.DATA}/result"):
        if time.monotonic() > deadline or not os.path.exists(f"/proc/{update.ROOT_PID}"):
            sys.exit(f"it has not got on: {update.look()}")
        time.sleep(0.05)
    with open(f"{update.DATA}/result") as file:
        update.figures["said"] = said = file.read()
    if said != "right":
        sys.exit(said)
    update.report("checkpoint")


if sys.argv[1] == "checkpoint":
    checkpoint()
else:
    program(sys.argv[1])
