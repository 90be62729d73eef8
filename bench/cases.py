# SPDX-License-Identifier: Apache-2.0
"""What is measured, and what Torpor has promised: the victims, the goals, the units of growth."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One victim: a kind that victim.c knows, and how many of it."""

    name: str
    title: str
    kind: str
    number: int
    unit: str  # what one more of it is called in the table of growth; "" where it is not in there
    per: str  # the unit of the figure: "µs" for one, "ms" for a gigabyte
    in_memory: bool = False  # the images lie on a tmpfs: what a dump costs where no disk is waited for


CASES = (
    Case("small", "4 MB process", "memory", 4, "", ""),
    Case("gigabyte", "1 GB process", "memory", 1024, "GB", "ms"),
    Case("gigabyte-in-memory", "1 GB process, images in memory", "memory", 1024, "", "", in_memory=True),
    Case("threads", "1,000 threads", "threads", 1000, "thread", "µs"),
    Case("processes", "200 processes", "processes", 200, "process", "µs"),
    Case("areas", "10,000 areas", "areas", 10000, "area", "µs"),
    Case("files", "5,000 open files", "files", 5000, "file", "µs"),
)
BASE = CASES[0]

DUMP, RESTORE = "dump", "restore"


class Goal(NamedTuple):
    """Torpor ÷ CRIU must not exceed this."""

    frozen: float | None
    whole: float | None


GOALS: dict[tuple[str, str], Goal] = {
    (DUMP, "small"): Goal(0.6, 2.0),
    (DUMP, "gigabyte"): Goal(0.7, 0.8),
    (DUMP, "threads"): Goal(1.5, 2.0),
    (DUMP, "processes"): Goal(1.5, 2.0),
    (DUMP, "areas"): Goal(1.5, 2.0),
    (DUMP, "files"): Goal(1.5, 2.0),
    (RESTORE, "small"): Goal(None, 2.0),
    (RESTORE, "gigabyte"): Goal(None, 0.8),
}
MEMORY_GOAL_MB = 60.0  # of Torpor, in every case


def units(case: Case) -> float:
    """How many units of growth separate the case from the base."""
    return (case.number - BASE.number) / 1024 if case.unit == "GB" else float(case.number)
