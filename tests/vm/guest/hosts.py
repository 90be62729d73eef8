# SPDX-License-Identifier: Apache-2.0
"""From host to host, one step in each: ``hosts.py STEP``, on a disk that goes from guest to guest.

dump: the busy tree, with --cpu-cap.  hop: it goes on here, whose CPU has all that is asked for, and is dumped again.
restore: it goes on here, and ends; so does a program with a small alternate stack, if signals fit on it here.
surplus: this CPU has registers for which the C library left no room.  lacking: this CPU has not all; that is said, and
nothing is made.  vectors: dumps a program that holds vector registers; far: one that has memory far up.  refuse: it
cannot be restored here.  hold: here it can.  Any step of UNLIKE: this CPU does something otherwise, for which a restore
is refused without any option.
"""

import json
import os
import signal
import sys
import time

import update

from torpor import cpu_names, cpuinfo
from torpor.images import kinds
from torpor.images.directory import ImageReader
from torpor.kernel.proc import parse_auxv
from torpor.kernel.procfs import read_all
from torpor.resources.signals import AT_MINSIGSTKSZ

PR_SECONDS = 1
# By machine: what the lesser CPU of tests/vm/test_update.py lacks, and what a thread that computes with it uses.
LACKING = {
    "x86_64": ("avx2 instructions", "AVX"),
    "aarch64": ("the feature atomics", "SVE"),
    "armv7l": ("the feature thumbee", ""),
    "ppc64le": ("the feature arch_3_00", ""),
    "s390x": ("the feature vx", "the vector facility"),
}
UNLIKE = {
    "signs_otherwise": "a machine that signs pointers by QARMA5 in the bits",
    "shorter_vectors": "it uses SVE vectors of 64 bytes, which this CPU does not have",
    "vectored_calls": "is in a system call that was made by scv, which this CPU does not have",
    "shorter_addresses": "it has memory at 0x4000000000000, further up than this machine's programs can have any",
}
LACKING_MORE = {"fewer_facilities": "it lacks facility 58, facility 61"}  # what only torpor-cpu.img tells
# Where the kernel tells what a signal takes by the CPU, and whether a program may get more than it was told.
SMALL_STACKS = {"x86_64": True, "aarch64": False}
SMALL = f"{update.DATA}/small"
INSTRUCTIONS, REGISTERS = LACKING[os.uname().machine]


def names_agree() -> None:
    """What Torpor calls this CPU's features is what /proc/cpuinfo calls them, where that does."""
    arch = os.uname().machine
    with open("/proc/cpuinfo") as file:
        shown = [line.partition(":")[2].split() for line in file if line.lower().startswith("features")]
    if arch in ("aarch64", "armv7l", "s390x"):
        ours = {name for word, bits in enumerate(cpuinfo.hwcaps()) for name in cpu_names.names(arch, word, bits)}
        if not shown or ours != set(shown[0]):
            sys.exit(f"features are called otherwise: {sorted(ours)}, /proc/cpuinfo: {shown}")
        update.figures["features"] = len(ours)


def signals() -> int:
    with open(f"{update.DATA}/signals", "rb") as file:
        return int.from_bytes(file.read(8), sys.byteorder)


def dump_small_stack() -> None:
    """A second checkpoint, beside the tree's, which has ended."""
    update.begin("small_stack.py", "signals")
    os.mkdir(SMALL, 0o700)
    update.torpor("dump", "-t", str(update.ROOT_PID), images=SMALL)


def restore_small_stack() -> None:
    """It goes on taking signals, or is refused where its stack is too small for them."""
    here = dict(parse_auxv(read_all("/proc/self/auxv")))[AT_MINSIGSTKSZ]
    images = ImageReader(os.open(SMALL, os.O_RDONLY))
    stack = images.one(kinds.CORE, update.ROOT_PID).thread_core
    assert stack is not None and stack.sas is not None
    size = stack.sas.ss_size
    update.figures["small stack"] = f"{size}, {here} here"
    if size < here and SMALL_STACKS[os.uname().machine]:
        for words in (("check",), ("restore", "-d"), ("restore", "-d", "--cpu-cap=none")):
            said = "".join(update.answer(*words, images=SMALL, fails=True))
            if f"an alternate signal stack of {size} bytes" not in said:
                sys.exit(f"it does not say that the alternate stack is too small: {said}")
        update.figures["small stack"] = said
        return
    update.torpor("restore", "-d", images=SMALL)
    before, deadline = signals(), time.monotonic() + 60
    while signals() < before + 5:
        if time.monotonic() > deadline or not os.path.exists(f"/proc/{update.ROOT_PID}"):
            sys.exit(f"it takes no signals any more: {update.kernel_messages()}")
        time.sleep(0.05)
    os.kill(update.ROOT_PID, signal.SIGKILL)


def main() -> None:
    step = sys.argv[1]
    names_agree()
    update.frames_are_known()
    if step == "dump":
        update.begin()
        update.work()
        update.dump("--cpu-cap")
        update.torpor("cpuinfo", "dump")  # the same once more, which does no harm to the checkpoint
        if os.uname().machine in SMALL_STACKS:
            dump_small_stack()
    elif step in ("hop", "restore"):
        update.torpor("cpuinfo", "check")
        update.await_clocks()
        update.torpor("restore", "-d", "--cpu-cap=ins,fpu")
        update.work()
        if step == "hop":
            update.dump("--cpu-cap")
        else:
            update.finish()
            if os.uname().machine in SMALL_STACKS:
                restore_small_stack()
    elif step == "lacking" or step in LACKING_MORE:
        lacking = LACKING_MORE.get(step, INSTRUCTIONS)
        update.await_clocks()
        said = [update.torpor("cpuinfo", "check", fails=True), update.torpor("restore", "-d", "--cpu-cap", fails=True)]
        # Registers are looked at first: where the C library copies with vectors, the busy task may hold some.
        used = bool(REGISTERS) and f"it uses {REGISTERS}, which this CPU does not have" in said[1]
        if lacking not in said[0] or not (lacking in said[1] or used):
            sys.exit(f"it does not say {lacking}: {said}")
        update.figures["said"] = said[1]
        update.nothing_made()
    elif step == "surplus":
        said = update.torpor("restore", "-d", "--cpu-cap=ins,fpu", fails=True)
        if "components that the other's had not (3)" not in said:
            sys.exit(f"it does not say that there are too many registers: {said}")
        update.figures["said"] = said
        update.nothing_made()
    elif step in UNLIKE:
        said = [update.torpor(*words, fails=True) for words in (("check",), ("restore", "-d"))]
        if UNLIKE[step] not in said[1] or "copy the whole directory" in said[1]:
            sys.exit(f"it does not say {UNLIKE[step]!r}: {said}")
        update.figures["said"] = said[1]
        update.nothing_made()
    elif step in ("vectors", "far"):
        update.begin(f"{step}.py", "holding")
        time.sleep(PR_SECONDS)  # it is on its way from the file to the loop
        update.dump()
    elif step == "vectors_in_handler":
        update.begin("vectors.py", "holding", "handler")
        update.dump()
    elif step == "in_handlers":
        update.begin("in_handler", "holding")
        update.dump()
    elif step == "refuse":
        said = update.torpor("restore", "-d", fails=True)
        if f"uses {REGISTERS}, " not in said:
            sys.exit(f"it does not say that {REGISTERS} is lacking: {said}")
        update.figures["said"] = said
        update.nothing_made()
    else:
        update.torpor("check")
        update.torpor("restore", "-d")
        with open(f"{update.DATA}/go", "r+b") as file:
            file.write(b"\1")
        deadline = time.monotonic() + 60
        while not os.path.exists(f"{update.DATA}/result") and time.monotonic() < deadline:
            if not os.path.exists(f"/proc/{update.ROOT_PID}") and not os.path.exists(f"{update.DATA}/result"):
                sys.exit(f"it has ended:\n{update.kernel_messages()}")
            time.sleep(0.05)
        with open(f"{update.DATA}/result") as file:
            held = json.load(file)
        update.figures |= held
        if any(held.values()):
            sys.exit(f"it is not what it was: {held}")
    update.report(step)


main()
