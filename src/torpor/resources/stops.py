# SPDX-License-Identifier: Apache-2.0
"""Whether the parent of a stopped task has asked about the stop already: wait(2) with WUNTRACED tells each stop once.

Only the parent can find out, by waitid(2) with WNOWAIT.  CRIU's images cannot say it; without word of it the stop
counts as seen, as it is in a shell.  At restore resources/tree.py stops the task and lets its parent ask, or not.

That a stopped task goes on again is told once, too (WCONTINUED).  A parent that had not been told is not told any more,
and the dump says so.
"""

import struct

from torpor import log
from torpor.resources import extras
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Pointer, Program
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import Dump, DumpTask, Restore

P_ALL, P_PID = 0, 1
WNOHANG, WSTOPPED, WCONTINUED, WNOWAIT, WALL = 1, 2, 8, 0x01000000, 0x40000000
CONTINUED = 0  # among answers by PID
_SIGINFO = 128


class UnseenStops(Attribute):
    covers = frozenset({"task:unseen_stop"})

    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        """Parents are examined before their children, and asked after all of them."""
        parent = dump.tasks.get(task.ppid)
        if parent is None or task.running:
            return
        if task.leader.group_stop:
            parent.stopped_children.append(task.pid)
        else:
            parent.has_children = True

    def ask(self, task: "DumpTask", program: "Program") -> "dict[int, Pointer]":
        asked = {}
        if task.has_children:
            asked[CONTINUED] = program.space(_SIGINFO)
            flags = WCONTINUED | WNOHANG | WNOWAIT | WALL
            program.call("waitid", P_ALL, 0, asked[CONTINUED], flags, 0, may_fail=True)
        for pid in task.stopped_children:
            asked[pid] = program.space(_SIGINFO)
            program.call("waitid", P_PID, pid, asked[pid], WSTOPPED | WNOHANG | WNOWAIT | WALL, 0)
        return asked

    def save(self, task: "DumpTask", answer: "dict[int, Pointer]", core: "CoreEntry") -> None:
        # WNOHANG with nothing to tell leaves si_signo 0.
        news = answer.pop(CONTINUED, None)
        if news is not None and struct.unpack_from("=i", news.data)[0]:
            log.warning(
                f"{task.subject} has not heard yet that a child of its which was stopped goes on (WCONTINUED); "
                "restored, it will not hear"
            )
        unseen = [pid for pid, info in answer.items() if struct.unpack_from("=i", info.data)[0]]
        if unseen:
            task.process_extras["unseen_stops"] = unseen


def is_unseen(restore: "Restore", parent: int, child: int) -> bool:
    """Whether `parent` is still to be told that `child` has stopped."""
    return child in extras.load(restore, parent).process.unseen_stops


ATTRIBUTES = [UnseenStops()]
