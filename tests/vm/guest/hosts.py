# SPDX-License-Identifier: Apache-2.0
"""From host to host, one step in each: ``hosts.py STEP``, on a disk that goes from guest to guest.

dump: the busy tree, with --cpu-cap.  hop: it goes on here, whose CPU has all that is asked for, and is dumped again.
restore: it goes on here, and ends.  surplus: this CPU has registers for which the C library left no room.  lacking:
this CPU has not all; that is said, and nothing is made.  vectors: dumps a program that holds vector registers; far: one
that has memory far up.  refuse: it cannot be restored here.  hold: here it can.  Any step of UNLIKE: this CPU does
something otherwise, for which a restore is refused without any option.
"""

import json
import os
import sys
import time

import update

from torpor import cpu_names, cpuinfo

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


def main() -> None:
    step = sys.argv[1]
    names_agree()
    update.frames_are_known()
    if step == "dump":
        update.begin()
        update.work()
        update.dump("--cpu-cap")
        update.torpor("cpuinfo", "dump")  # the same once more, which does no harm to the checkpoint
    elif step in ("hop", "restore"):
        update.torpor("cpuinfo", "check")
        update.await_clocks()
        update.torpor("restore", "-d", "--cpu-cap=ins,fpu")
        update.work()
        if step == "hop":
            update.dump("--cpu-cap")
        else:
            update.finish()
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
