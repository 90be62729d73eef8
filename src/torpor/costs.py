# SPDX-License-Identifier: Apache-2.0
"""What a dump costs, for estimates: bytes of images, and seconds for which the tree stands still (with -R).

Both were measured with a small C program that owns one sort of thing a thousandfold (300 threads, 50 processes, 4,000
areas, 1,000 descriptors, 300 MB), each less the same program without: x86_64, two processors of a virtual machine,
Linux 6.18, Python 3.11, 2026-11.  The program and Torpor ran before all others (chrt -f), so the times are those of a
machine that has nothing else to do; where it has, everything takes longer.  For redis-server, node, Python with threads
and with children, and a shell's pipeline they came within a third of the dump's median then.  What tests/check/
test_estimates.py compares with dumps are sizes, and the amounts below.
"""

from torpor.typed import NamedTuple

BASE = 8e-3  # a small process, whatever it has
PROCESS = 1.6e-3
THREAD = 380e-6
AREA = 15e-6  # of anonymous memory a little less, of files more
DESCRIPTOR = 35e-6
GIB = 0.3  # writing memory

BASE_BYTES = 1_500  # inventory, statistics, and what every tree has
PROCESS_BYTES = 1_700
THREAD_BYTES = 800  # more where large vector registers are in use
AREA_BYTES = 44
DESCRIPTOR_BYTES = 13

# Of an open file description, by its registry key: seconds, bytes.
FILE = 60e-6, 50
FILES = {
    "fd:regular": (50e-6, 60),
    "fd:pipe": (20e-6, 45),
    "fd:eventfd": (120e-6, 30),
    "fd:timerfd": (200e-6, 45),
    "fd:unix": (180e-6, 110),
    "fd:inet": (180e-6, 110),
}


class Amounts(NamedTuple):
    """What a tree has, as far as it costs something."""

    processes: int
    threads: int  # leaders too
    areas: int
    descriptors: int
    files: dict[str, int]  # open file descriptions, by registry key
    memory: int  # bytes to be written
    contents: int = 0  # bytes of deleted files, of memfds that are not mapped, and in pipes


def frozen_seconds(amounts: Amounts) -> float:
    return (
        BASE
        + PROCESS * max(amounts.processes - 1, 0)
        + THREAD * max(amounts.threads - amounts.processes, 0)
        + AREA * amounts.areas
        + DESCRIPTOR * amounts.descriptors
        + sum(number * FILES.get(key, FILE)[0] for key, number in amounts.files.items())
        + GIB * (amounts.memory + amounts.contents) / 2**30
    )


def image_bytes(amounts: Amounts) -> int:
    return (
        BASE_BYTES
        + PROCESS_BYTES * amounts.processes
        + THREAD_BYTES * amounts.threads
        + AREA_BYTES * amounts.areas
        + DESCRIPTOR_BYTES * amounts.descriptors
        + sum(number * FILES.get(key, FILE)[1] for key, number in amounts.files.items())
        + amounts.memory
        + amounts.contents
    )
