# SPDX-License-Identifier: Apache-2.0
"""Resource limits (getrlimit(2)), sixteen for each process.

- They are read from /proc/PID/limits: prlimit(2) on another user's task needs CAP_SYS_RESOURCE, the file does not.
- A low limit gets in the way of the restore itself (descriptors, threads, memory, queued signals), so they are set in
  the end.  By then the task has given up its rights, and raising a hard limit needs CAP_SYS_RESOURCE: hard limits that
  have to be raised are raised first, as long as the task is still what Torpor is.
"""

import struct

from torpor.errors import ImageError
from torpor.images.frozen import freeze
from torpor.images.schema.core import TaskRlimitsEntry
from torpor.images.schema.rlimit import RlimitEntry
from torpor.kernel.proc import INFINITY, LIMITS, Limit
from torpor.resources import own
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Program
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import DumpTask, Restore, RestoreTask

COUNT = 16
NOFILE = 7
_ULIMIT = {0: "-t", 1: "-f", 2: "-d", 3: "-s", 4: "-c", 5: "-m", 6: "-u", 7: "-n", 8: "-l", 9: "-v", 10: "-x", 11: "-i",
           12: "-q", 13: "-e", 14: "-r", 15: "-R"}  # fmt: skip


class Rlimits(Attribute):
    covers = frozenset({"task:rlimits"})

    def __init__(self) -> None:
        self._known: dict[tuple[Limit, ...], TaskRlimitsEntry] = {}  # most tasks of a tree have the same

    def ask(self, task: "DumpTask", program: "Program") -> dict[int, Limit]:
        return task.limits

    def save(self, task: "DumpTask", answer: dict[int, Limit], core: "CoreEntry") -> None:
        assert core.tc is not None
        limits = tuple(answer[number] for number in range(COUNT))
        entry = self._known.get(limits)
        if entry is None:
            entry = TaskRlimitsEntry(rlimits=[RlimitEntry(cur=limit.soft, max=limit.hard) for limit in limits])
            freeze(entry)
            self._known[limits] = entry
        core.tc.rlimits = entry

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        limits = _limits(task)
        if len(limits) > COUNT:
            raise ImageError(f"the core image of task {task.pid} is mangled", f"it has {len(limits)} resource limits")
        ours = own.facts()
        names = {number: name.decode("ascii").lower() for name, number in LIMITS.items()}
        for number, limit in enumerate(limits):
            if limit.cur > limit.max:
                why = f"its limit of {names[number]} is above the hard limit"
                raise ImageError(f"the core image of task {task.pid} is mangled", why)
            if number == NOFILE and limit.max > _most_files(restore):  # also where it is Torpor's own
                raise task.refusal(
                    f"its hard limit of {names[number]} ({_text(limit.max)}) is higher than anybody may have here",
                    f"sysctl fs.nr_open={limit.max}",
                )
            if limit.max > ours.limits[number].hard and not ours.has(own.CAP_SYS_RESOURCE):
                raise task.refusal(
                    f"its hard limit of {names[number]} ({_text(limit.max)}) is higher than Torpor's "
                    f"({_text(ours.limits[number].hard)}), and raising it needs CAP_SYS_RESOURCE",
                    f"run Torpor with that capability, or under the higher limit (ulimit -H {_ULIMIT[number]} "
                    f"{_text(limit.max)})",
                )

    def place(self, task: "RestoreTask", program: "Program") -> None:
        """Raise hard limits, while the task may."""
        for number, limit in enumerate(_limits(task)):
            ours = own.facts().limits[number]
            if limit.max > ours.hard:
                program.call("prlimit64", 0, number, program.put(struct.pack("=QQ", ours.soft, limit.max)), 0)

    def last(self, task: "RestoreTask", program: "Program") -> None:
        for number, limit in enumerate(_limits(task)):
            program.call("prlimit64", 0, number, program.put(struct.pack("=QQ", limit.cur, limit.max)), 0)


def _limits(task: "RestoreTask") -> list[RlimitEntry]:
    tc = task.core.tc
    return tc.rlimits.rlimits if tc is not None and tc.rlimits is not None else []


def _most_files(restore: "Restore") -> int:
    if "fs.nr_open" not in restore.state:
        restore.state["fs.nr_open"] = own.number_file("/proc/sys/fs/nr_open") or INFINITY
    found: int = restore.state["fs.nr_open"]
    return found


def _text(limit: int) -> str:
    return "unlimited" if limit == INFINITY else str(limit)


ATTRIBUTES = [Rlimits()]
