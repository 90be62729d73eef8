# SPDX-License-Identifier: Apache-2.0
"""What a dump costs, for estimates: bytes of images, and seconds for which the tree stands still.

The times are those of docs/benchmarks.md (table "Growth": what one more of a thing costs), measured by ``make bench``
on a virtual machine with two processors of 2023; a faster one needs less.  They are rounded up: an estimate that is
too high disappoints nobody.
"""

from typing import NamedTuple

BASE = 4e-3  # a small process, whatever it has
PROCESS = 400e-6
THREAD = 120e-6
AREA = 12e-6
FILE = 60e-6
GIB = 0.35  # writing memory

BASE_BYTES = 12_000  # inventory, statistics, and what every tree has
PROCESS_BYTES = 4_000
THREAD_BYTES = 4_200  # registers with all of XSTATE
AREA_BYTES = 48
FILE_BYTES = 96


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
