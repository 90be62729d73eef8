# SPDX-License-Identifier: Apache-2.0
"""What a dump costs, for estimates: bytes of images, and seconds for which the tree stands still.

Measured on Linux 6.18 x86_64, a virtual machine with two processors: 200 threads, 2,000 areas, 2,000 files, 20 small
processes, 512 MB, each less a program that only sleeps.  ``make bench`` measures the same (docs/benchmarks.md, table
"Growth": what one more of a thing costs), and these should not be far from it.  A busy machine needs much longer.
"""

from typing import NamedTuple

BASE = 4e-3  # a small process, whatever it has
PROCESS = 400e-6
THREAD = 120e-6
AREA = 12e-6
FILE = 60e-6
GIB = 0.35  # writing memory

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
