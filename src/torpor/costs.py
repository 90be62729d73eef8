# SPDX-License-Identifier: Apache-2.0
"""What a dump costs, for estimates: bytes of images, and seconds for which the tree stands still.

The times are those of docs/benchmarks.md (``make bench``; table "Growth": what one more of a thing costs), less what
is counted apart, as measured on a busy virtual machine with two processors; others need less.  The sizes were measured
with 200 threads, 2,000 areas, 2,000 files and 20 processes, each less a program that only sleeps.
"""

from torpor.typed import NamedTuple

BASE = 8e-3  # a small process, whatever it has
PROCESS = 4e-3
THREAD = 300e-6
AREA = 28e-6
FILE = 80e-6
GIB = 0.57  # writing memory

BASE_BYTES = 6_000  # inventory, statistics, and what every tree has
PROCESS_BYTES = 2_700
THREAD_BYTES = 2_000  # more where large vector registers are in use
AREA_BYTES = 32
FILE_BYTES = 68


class Amounts(NamedTuple):
    """What a tree has, as far as it costs something."""

    processes: int
    threads: int  # leaders too
    areas: int
    descriptors: int
    memory: int  # bytes to be written
    ghosts: int = 0  # bytes of deleted files


def frozen_seconds(amounts: Amounts) -> float:
    return (
        BASE
        + PROCESS * max(amounts.processes - 1, 0)
        + THREAD * max(amounts.threads - amounts.processes, 0)
        + AREA * amounts.areas
        + FILE * amounts.descriptors
        + GIB * (amounts.memory + amounts.ghosts) / 2**30
    )


def image_bytes(amounts: Amounts) -> int:
    return (
        BASE_BYTES
        + PROCESS_BYTES * amounts.processes
        + THREAD_BYTES * amounts.threads
        + AREA_BYTES * amounts.areas
        + FILE_BYTES * amounts.descriptors
        + amounts.memory
        + amounts.ghosts
    )
