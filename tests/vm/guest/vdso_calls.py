# SPDX-License-Identifier: Apache-2.0
"""What a leg of a kernel update (update.py) does with vdso_calls.c: as a child of the busy tree, whose clocks it
watches, and alone.  Alone, it is dumped until a thread of it was inside the vDSO and has been let out; and with -R,
which leaves threads where they are, until one is inside in the images: these are refused under another kernel, and
restored under their own.
"""

import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from typing import NoReturn

import update

from torpor.arch import native
from torpor.images import kinds
from torpor.images.directory import ImageReader
from torpor.memory import areas

PID = 13000
HOME, INSIDE, SCRATCH = "/data/alone", "/data/inside", "/data/scratch"
ROUNDS, CLOCKS = 5, 16  # words of the counters
NAMES = {1: "MONOTONIC", 4: "MONOTONIC_RAW", 6: "MONOTONIC_COARSE", 7: "BOOTTIME", 9: "BOOTTIME_ALARM"}
TRIES = 200  # it is seen inside less often than half of the time: once in twenty dumps on an idle machine
KEPT = "sigreturn", "sigtramp", "restart_syscall"  # code of the old kernel's, which does not ask for its data
PROGRAM_COUNTERS = {
    "x86_64": ("thread_info", "ip"), "aarch64": ("ti_aarch64", "pc"), "armv7l": ("ti_arm", "pc"),
    "ppc64le": ("ti_ppc64", "nip"), "s390x": ("ti_s390", "psw_addr"),
}  # fmt: skip


def fail(why: str) -> NoReturn:
    raise SystemExit(f"{why}\n{update.look()}")


def is_there() -> bool:
    """Whether the tree has it: one that goes from host to host (hosts.py) has not."""
    return os.path.exists(f"{update.DATA}/vdso_calls")


def words(home: str) -> tuple[int, ...]:
    with open(f"{home}/counters", "rb") as file:
        return struct.unpack("=32q", file.read(256))


def child() -> int:
    """The tree's."""
    for pid in range(update.ROOT_PID, update.ROOT_PID + 20):
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read() == "vdso_calls\n":
                    return pid
        except FileNotFoundError:
            pass
    fail("the tree has no vdso_calls")


def spinner(pid: int) -> int:
    """The thread that is inside the vDSO much of its time; 0: this kernel's cannot be asked for the time."""
    for tid in map(int, os.listdir(f"/proc/{pid}/task")):
        with open(f"/proc/{pid}/task/{tid}/comm") as file:
            if file.read() == "spin\n":
                return tid
    return 0


# -- clocks -----------------------------------------------------------------------------------------------------------


def note_clocks(dumped_for: float) -> None:
    """What the tree has seen of its clocks, at most so many seconds before it was frozen."""
    with open(f"{update.DATA}/clocks", "w") as file:
        json.dump([dumped_for, words(update.DATA)[CLOCKS:]], file)


def compare_clocks(restored: float) -> None:
    """Every clock has come as far as the tree has run since.  `restored`: when the restore began, here."""
    with open(f"{update.DATA}/clocks") as file:
        dumped_for, before = json.load(file)
    now = words(update.DATA)[CLOCKS:]
    most = dumped_for + time.monotonic() - restored + 2
    come = {name: (now[i] - before[i]) / 1e9 for i, name in NAMES.items() if now[i] and before[i]}
    update.figures["clocks have come"] = {name: round(seconds, 2) for name, seconds in come.items()}
    if not os.path.exists(update.OFFSETS):  # they went ahead
        most = 1000.0
    for name, seconds in come.items():
        if not 0 < seconds <= most or abs(seconds - come["MONOTONIC"]) > 60:  # RAW is not corrected
            fail(f"CLOCK_{name} has come {seconds:.3f} s from one leg to the other, of at most {most:.3f}: {come}")


# -- functions --------------------------------------------------------------------------------------------------------


def compare_jumps(kernels: list[tuple[int, dict[str, int]]]) -> int:
    """Each function of each kernel's vDSO that the tree has lived with leads to the same function of the next one's, if
    that has it elsewhere; how many do.  `kernels`: where each had its vDSO, and which function where in it."""
    jumps = 0
    with open(f"/proc/{update.ROOT_PID}/mem", "rb") as memory:
        for (start, functions), (next_start, next_functions) in itertools.pairwise(kernels):
            for name, offset in functions.items():
                if start == next_start or name not in next_functions or any(kept in name for kept in KEPT):
                    continue
                aliases = {next_functions[other] for other in functions if functions[other] == offset
                           and other in next_functions}  # fmt: skip
                expected = [native().jump(next_start + other) for other in aliases]
                memory.seek(start + offset)
                found = memory.read(len(expected[0]))
                if found not in expected:
                    fail(f"{name} at {start + offset:#x} does not lead to the next kernel's: {found.hex()}")
                jumps += 1
    return jumps


# -- inside -----------------------------------------------------------------------------------------------------------


def inside(directory: str) -> list[int]:
    """Threads that, as the images have it, are in the middle of a function of this kernel's vDSO."""
    info, field = PROGRAM_COUNTERS[os.uname().machine]
    entries = update.vdso_functions().values()
    found = []
    with ImageReader.open(directory) as images:
        for task in images.entries(kinds.PSTREE):
            spans = [(a.start, a.end) for a in images.one(kinds.MM, task.pid).vmas if a.status & areas.VDSO]
            for tid in task.threads:
                pc = getattr(getattr(images.one(kinds.CORE, tid), info).gpregs, field)
                found += [tid for start, end in spans if start <= pc < end and pc - start not in entries]
    return found


def begin_alone() -> None:
    """What begin and hop have to show of it.  The kernel's vDSO has to have something to call."""
    shutil.copy("/t/vdso_calls", update.DATA)
    os.mkdir(HOME)
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(PID - 1))
    null = subprocess.DEVNULL
    alone = subprocess.Popen(
        [f"{update.DATA}/vdso_calls", HOME], stdin=null, stdout=null, stderr=null, start_new_session=True
    )
    if alone.pid != PID:
        fail(f"vdso_calls has PID {alone.pid}")
    get_on()
    if not spinner(PID):
        fail("this kernel's vDSO cannot tell the time")
    let_out()
    catch()
    alone.kill()
    alone.wait()


def get_on() -> None:
    deadline = time.monotonic() + 60
    begun = words(HOME)[ROUNDS] if os.path.exists(f"{HOME}/counters") and os.path.getsize(f"{HOME}/counters") else 0
    while not os.path.exists(f"{HOME}/counters") or not os.path.getsize(f"{HOME}/counters") or (
        words(HOME)[ROUNDS] < begun + 2
    ):  # fmt: skip
        if time.monotonic() > deadline:
            fail(f"vdso_calls does not get on: {update.state(PID)}")
        time.sleep(0.02)


def dump_alone(directory: str, option: str) -> list[int]:
    """Who is inside, in the images."""
    shutil.rmtree(directory, ignore_errors=True)
    os.mkdir(directory, 0o700)
    update.torpor("dump", "-t", str(PID), option, images=directory)
    return inside(directory)


def let_out() -> None:
    """Dumps that leave it stopped, until one has met it inside: none has it there in the images."""
    for tries in range(1, TRIES + 1):
        found = dump_alone(SCRATCH, "-s")
        os.killpg(PID, signal.SIGCONT)
        with open(f"{update.DATA}/log") as file:
            was_inside = "inside the vDSO: letting" in file.read()
        if found:
            fail(f"threads {found} were dumped inside the vDSO")
        if was_inside:
            update.figures["let out of the vDSO at dump"] = tries
            get_on()
            return
        time.sleep(0.01)
    fail("no dump has met it inside the vDSO")


def catch() -> None:
    for tries in range(1, TRIES + 1):
        if dump_alone(INSIDE, "-R"):
            update.figures["inside the vDSO at dump"] = tries
            return
        time.sleep(0.01)
    fail("no dump with -R has it inside the vDSO")


def obstacles(fails: bool) -> list[str]:
    output, _ = update.answer("check", "--json", images=INSIDE, fails=fails)
    return [obstacle["code"] for obstacle in json.loads(output)["obstacles"]]


def refuse_inside() -> None:
    """Under another kernel."""
    codes = obstacles(True)
    said = update.torpor("restore", "-d", images=INSIDE, fails=True)
    if "inside-vdso" not in codes or "was in the middle of a function of its kernel's vDSO" not in said:
        fail(f"it does not say that a thread is inside another vDSO: {codes}, {said}")
    if os.path.exists(f"/proc/{PID}"):
        fail("a refused restore has left a process behind")
    update.figures["said of one inside"] = said


def restore_inside() -> None:
    """Under the kernel of the dump, again."""
    if codes := obstacles(False):
        fail(f"under its own kernel it is refused: {codes}")
    update.torpor("restore", "-d", images=INSIDE)
    get_on()
    os.kill(PID, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while not os.path.exists(f"{HOME}/calls") or not os.path.getsize(f"{HOME}/calls"):
        if time.monotonic() > deadline:
            fail(f"it does not end: {update.state(PID)}")
        time.sleep(0.02)
    with open(f"{HOME}/calls") as file:
        if wrong := json.load(file):
            fail(f"it says: {wrong}")
    update.figures["dumped inside, under its own kernel"] = "goes on"
