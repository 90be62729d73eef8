# SPDX-License-Identifier: Apache-2.0
"""What CRIU's images have no room for: torpor-PID.img, as the attributes fill it at dump and look it up at restore."""

from torpor.images.kinds import TORPOR_TASK
from torpor.images.schema.torpor import TaskExtraEntry, ThreadExtraEntry
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import DumpTask, Restore


def of_thread(task: "DumpTask", tid: int) -> ThreadExtraEntry:
    """At dump: the entry of one thread."""
    entry = task.thread_extras.get(tid)
    if entry is None:
        entry = task.thread_extras[tid] = ThreadExtraEntry(tid=tid)
    return entry


class Extras:
    """At restore: of one task.  `ours`: Torpor made the images; else all is empty."""

    __slots__ = ("ours", "process", "threads")

    def __init__(self, ours: bool, process: TaskExtraEntry, threads: dict[int, ThreadExtraEntry]) -> None:
        self.ours, self.process, self.threads = ours, process, threads


def load(restore: "Restore", pid: int) -> Extras:
    known: dict[int, Extras] = restore.state.setdefault("extras", {})
    if pid not in known:
        entry = restore.images.find(TORPOR_TASK, pid)
        process = entry.process if entry is not None else None
        threads = entry.threads if entry is not None else []
        known[pid] = Extras(entry is not None, process or TaskExtraEntry(), {thread.tid: thread for thread in threads})
    return known[pid]
