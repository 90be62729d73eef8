# SPDX-License-Identifier: Apache-2.0
"""Names of threads (PR_SET_NAME) and the personality of a process (personality(2)).

- A name is 15 bytes of anything but NUL; /proc/PID/stat shows it unescaped.
- CRIU writes the personality's hexadecimal digits as if they were decimal (0x40000 as 40000; 0 if there are letters)
  and never sets it back.  Images of ours have the same, and the true number in Torpor's own.
- The personality belongs to a thread and is inherited by those that it makes.  Restored tasks come from a stub that
  runs with ADDR_NO_RANDOMIZE, so it always has to be set back: left alone, later execs would lose randomisation.
"""

import os

from torpor.kernel.proc import parse_number
from torpor.kernel.procfs import read_all
from torpor.resources import extras
from torpor.resources.base import Attribute
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.program import Program, Result
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.resources.context import DumpTask, Restore, RestoreTask

PR_SET_NAME = 15
NAME_LENGTH = 15
ASK = 0xFFFFFFFF  # to personality(2): change nothing


class Names(Attribute):
    covers = frozenset({"thread:name"})

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: object, core: "CoreEntry") -> None:
        assert core.thread_core is not None
        core.thread_core.comm = os.fsdecode(task.thread_statuses[thread.tid].name)

    def place(self, task: "RestoreTask", program: "Program") -> None:
        """Threads inherit the leader's name."""
        assert task.core.tc is not None
        set_name(program, _leaders(task))

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        assert core.thread_core is not None
        name = core.thread_core.comm
        if name is not None and name != _leaders(task):
            set_name(program, name)


def _leaders(task: "RestoreTask") -> str:
    assert task.core.tc is not None
    return task.core.tc.comm


def set_name(program: "Program", name: str) -> None:
    """Also for zombies, which keep the name that they die with."""
    program.call("prctl", PR_SET_NAME, program.string(os.fsencode(name)[:NAME_LENGTH].split(b"\0")[0]))


class Personality(Attribute):
    covers = frozenset({"task:personality"})

    def ask(self, task: "DumpTask", program: "Program") -> int:
        return parse_number("personality", read_all(f"/proc/{task.leader.tid}/personality"), 16)

    def save(self, task: "DumpTask", answer: int, core: "CoreEntry") -> None:
        assert core.tc is not None
        digits = f"{answer:x}"
        core.tc.personality = int(digits) if digits.isdecimal() else 0
        task.process_extras["personality"] = answer

    def ask_thread(self, task: "DumpTask", program: "Program") -> "Result":
        return program.call("personality", ASK)

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: "Result", core: "CoreEntry") -> None:
        """A thread starts with its maker's."""
        if answer.value != task.process_extras["personality"]:
            extras.of_thread(task, thread.tid).personality = answer.value

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        extra = task.extras.threads.get(tid)
        if extra is not None and extra.personality is not None:
            program.call("personality", extra.personality)

    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        task.extras = extras.load(restore, task.pid)

    def place(self, task: "RestoreTask", program: "Program") -> None:
        assert task.core.tc is not None
        exact = task.extras.process.personality
        program.call("personality", int(str(task.core.tc.personality), 16) if exact is None else exact)


ATTRIBUTES = [Names(), Personality()]
