# SPDX-License-Identifier: Apache-2.0
"""Freezing a tree when none of its threads is inside the vDSO, where no thread can be single-stepped out of it.

Under another kernel such a thread could not be restored (`torpor.memory.vdso`).  The functions of the vDSO are short,
so whoever asks for the time now and then is mostly outside: the tree is let go, as after a dump that failed before it
did anything, and frozen again a moment later, some times.  Whoever was inside each time stays there.
"""

import time

from torpor import log
from torpor.engine.freeze import FrozenTree, freeze
from torpor.engine.thaw import thaw_somehow
from torpor.engine.waiting import check_cancelled
from torpor.kernel.maps import kind, read_maps
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee

TRIES = 20
SECONDS = 1.0  # no more tries then
PAUSE_S = 0.0002  # for which the tree runs


def freeze_outside(root: int, children: bool = True, timeout: float = 0.0) -> FrozenTree:
    """As `freeze`."""
    end = time.monotonic() + SECONDS
    tree = freeze(root, children, timeout)
    for tries in range(1, TRIES + 1):
        inside = [tid for process in tree.processes.values() for tid in _inside(process.threads)]
        if not inside:
            break
        if tries == TRIES or time.monotonic() > end:
            log.info(f"threads {inside} are inside the vDSO each time the tree stops: it stays so")
            break
        log.debug(f"threads {inside} are inside the vDSO: letting the tree go for a moment")
        check_cancelled()
        for process in tree.processes.values():
            thaw_somehow(process.threads.values())
        time.sleep(PAUSE_S)
        tree = freeze(root, children, timeout)
    return tree


def _inside(threads: "dict[int, Tracee]") -> list[int]:
    """The threads of one process that go on from there."""
    running = [thread for thread in threads.values() if not thread.group_stop]
    if not running:
        return []
    spans = [(area.start, area.end) for area in read_maps(running[0].tid) if kind(area) == "vdso"]
    return [t.tid for t in running if any(start <= t.arch.pc(t.general) < end for start, end in spans)]
