# SPDX-License-Identifier: Apache-2.0
"""The protocol of resources: one file per kind of kernel object, its dump beside its restore.

There are two sorts.  An `Attribute` belongs to a task or a thread (signals, timers, credentials …).  A `FileKind` is a
kind of open file description (pipe, socket, regular file …).  Every hook does nothing unless a resource says otherwise.

Calls that have to be made inside a task are *appended* to a program which dump.py and restore.py run once a phase, for
all tasks at the same time.  What `ask` returns is kept and handed to `save`, when the program has run::

    def ask(self, task, program):
        return program.call("prctl", PR_GET_DUMPABLE)

    def save(self, task, answer, core):
        core.... = answer.value
"""

from torpor.typed import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.engine.program import Program
    from torpor.engine.tracee import Tracee
    from torpor.images.schema.core import CoreEntry
    from torpor.images.schema.fdinfo import FileEntry
    from torpor.resources.context import Dump, DumpTask, Restore, RestoreTask, SeenFile


class Attribute:
    """Something that every task or thread has.  One instance serves all tasks: no state of a task in here."""

    covers: ClassVar[frozenset[str]] = frozenset()  # registry keys, e.g. "task:sigactions", "thread:altstack"

    @property
    def of_threads(self) -> bool:
        """Whether it has something to say of a thread: whatever it asks or looks at is for `save_thread`."""
        return type(self).save_thread is not Attribute.save_thread

    @property
    def looks(self) -> bool:
        """Whether it looks at a thread from outside, instead of asking it."""
        return type(self).look_thread is not Attribute.look_thread

    # -- dump: everything is frozen -----------------------------------------------------------------------------------
    def examine(self, task: "DumpTask", dump: "Dump") -> None:
        """Look from outside, running nothing.  dump.refuse() what could not be brought back, and go on.

        Also called for tasks that are not frozen (`task.running`), by `check -t`: then nothing can be asked by ptrace,
        but what `ask` and `save` would refuse should be seen already."""

    def examine_running(self, task: "DumpTask", dump: "Dump") -> None:
        """Before the freeze, and by `check -t`: look from outside, of every task, at what is too rare to be looked at
        while all stand still.  dump.refuse() it.  Its status need not have been read."""

    def ask(self, task: "DumpTask", program: "Program") -> Any:
        """Append what has to be asked once a process, in its leader (alive, never a zombie)."""

    def save(self, task: "DumpTask", answer: Any, core: "CoreEntry") -> None:
        """Fill in the leader's core (core.tc exists) from outside facts and from the answer."""

    def ask_thread(self, task: "DumpTask", program: "Program") -> Any:
        """Append what has to be asked in each thread, the leader too: the same in all threads of a task."""

    def look_thread(self, task: "DumpTask", thread: "Tracee") -> Any:
        """Look at a thread from outside, the leader too.  Raises Refusal.  Instead of `ask_thread`, not besides."""

    def save_thread(self, task: "DumpTask", thread: "Tracee", answer: Any, core: "CoreEntry") -> None:
        """Fill in a thread's core (core.thread_core exists), the leader's too, from what `ask_thread`, whose results
        are now this thread's, or `look_thread` has returned.  When `save` has been called.  Raises Refusal."""

    # -- restore ------------------------------------------------------------------------------------------------------
    def check(self, task: "RestoreTask", restore: "Restore") -> None:
        """Before anything is created: raises ImageError or Refusal for what cannot be brought back here."""

    def place(self, task: "RestoreTask", program: "Program") -> None:
        """Append to the leader's program, when memory and open files are back and no thread exists yet."""

    def place_thread(self, task: "RestoreTask", tid: int, core: "CoreEntry", program: "Program") -> None:
        """Append to the program of each thread, the leader too; the last thing that it runs before the barrier."""

    def in_turn(self, task: "RestoreTask", run: "Callable[[int, Program], None]") -> None:
        """All threads exist, of a process that has several: what they have to do one after the other.  `run` runs a
        program in the thread with the given TID."""

    def last(self, task: "RestoreTask", program: "Program") -> None:
        """Append to the leader's last program, when the whole tree stands (arm timers, send pending signals)."""

    def outside(self, task: "RestoreTask", restore: "Restore") -> None:
        """Set what is set from outside (/proc, sched_setattr by TID), just before the registers."""


class FileKind:
    """A kind of open file description.

    The controller fetches each description once (`SeenFile.fd`), and makes each again once: in restore `make` for all
    files in an order that respects `needs`, then `wire` for all, then every task gets its descriptors, then `place` for
    all, and `last` when the whole tree stands.
    """

    covers: ClassVar[frozenset[str]] = frozenset()  # registry keys, e.g. "fd:pipe"
    type: ClassVar[int] = 0  # images.schema.enums.FdTypes
    carries: ClassVar[bool] = False  # other files can be in flight in it

    # -- dump ---------------------------------------------------------------------------------------------------------
    def examine(self, seen: "SeenFile", dump: "Dump") -> None:
        """Raises Refusal for what could not be brought back: all that `save` would refuse and that can be seen without
        changing anything.  Also called for tasks that are not frozen, by `check -t`."""

    def examined(self, dump: "Dump") -> None:
        """Once, when `examine` has seen all descriptions: what depends on others, said by dump.refuse."""

    def save(self, seen: "SeenFile", dump: "Dump") -> "FileEntry":
        """The description's entry for files.img, with `id=seen.id` and `type=self.type`.  Frozen: be quick; queues are
        peeked at here, but what can be written later is kept for `late` (e.g. in dump.state)."""
        raise NotImplementedError

    def settle(self, dump: "Dump") -> None:
        """Once per dump, when all descriptions of all kinds have been saved; still frozen.  What depends on others is
        decided here.  Raises Refusal."""

    def late(self, dump: "Dump") -> None:
        """Once per dump, after the thaw where the tree goes on: write images of this kind's own."""

    # -- restore ------------------------------------------------------------------------------------------------------
    def check(self, entry: "FileEntry", restore: "Restore") -> None:
        """Before anything is created.  Raises ImageError, Refusal."""

    def needs(self, entry: "FileEntry", restore: "Restore") -> list[int]:
        """Ids of files that must have been made before this one."""
        return []

    def make(self, entry: "FileEntry", restore: "Restore") -> int:
        """Create the description; returns a descriptor of the controller's, which restore.py owns from then on.  One
        call may make several (both ends of a pipe): it then puts the others into restore.made[id]."""
        raise NotImplementedError

    def wire(self, entry: "FileEntry", fd: int, restore: "Restore") -> None:
        """All files exist: connect peers, fill queues, set positions and owners."""

    def place(self, entry: "FileEntry", task: "RestoreTask", number: int, program: "Program") -> None:
        """Every task has its descriptors: append what must be done inside the first task that has this one."""

    def last(self, entry: "FileEntry", fd: int, restore: "Restore") -> None:
        """The whole tree stands; the controller's descriptor is still open: arm timers and the like."""
