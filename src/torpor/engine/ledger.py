# SPDX-License-Identifier: Apache-2.0
"""What the journal comes to, when the engine has died: which threads, areas and descriptors are not as they were, and
which processes it was about to stop.  Each record of `engine.journal` has a method."""

from torpor.arch import native
from torpor.engine import journal
from torpor.kernel.inside import SeenCall
from torpor.typed import Any


class Thread:
    """A thread that the engine had touched and not put back."""

    def __init__(
        self, tid: int, pid: int, general: bytes, mask: int, specials: dict[int, bytes], stopped: bool
    ) -> None:
        self.tid, self.pid, self.general, self.mask, self.specials = tid, pid, general, mask, specials
        self.stopped = stopped  # its process was stopped by job control before we came
        self.inside = False
        self.pair = 0
        self.mapping = 0
        self.mapped: tuple[int, int] | None = None
        self.control: tuple[int, int] | None = None  # the engine's descriptor; the number of the task's end
        self.socket = -1  # ours


class Ledger:
    def __init__(self) -> None:
        self.threads: dict[int, Thread] = {}  # by TID
        self.areas: dict[int, dict[int, int]] = {}  # by PID: address -> size
        self.ours: dict[int, set[tuple[int, int]]] = {}  # by PID: device and inode
        self.seizing: dict[int, None] = {}  # PIDs, in order
        self.calls: dict[int, SeenCall] = {}  # by TID, where they can be seen only before the stop
        self.halted: set[int] = set()  # PIDs
        self.stopped: set[int] = set()  # PIDs of processes that somebody else has sent SIGSTOP
        # By PID of a process that job control has stopped: TIDs of those whose registers are as they were, but of whom
        # the kernel has forgotten that they are in a call (`Tracee.let_go`).
        self.forgetful: dict[int, set[int]] = {}
        self.held: list[int] = []  # descriptors of the engine's

    def read(self) -> None:
        """The whole journal."""
        for kind, *facts in journal.records():
            getattr(self, f"read_{kind}")(*facts)

    def threads_of(self, pid: int) -> list[Thread]:
        return [thread for thread in self.threads.values() if thread.pid == pid]

    def pids(self) -> set[int]:
        """Of the processes that are not as they were."""
        return {thread.pid for thread in self.threads.values()} | {pid for pid, areas in self.areas.items() if areas}

    def read_seizing(self, pid: int) -> None:
        self.seizing[pid] = None

    def read_call(self, tid: int, seen: tuple[Any, ...]) -> None:
        self.calls[tid] = SeenCall._make(seen)

    def read_halted(self, pid: int) -> None:
        self.halted.add(pid)

    def read_touched(self, tid: int, *facts: Any) -> None:
        before = self.threads.get(tid)
        self.threads[tid] = Thread(tid, *facts)
        if before:
            self.threads[tid].control = before.control

    def read_inside(self, tid: int) -> None:
        self.threads[tid].inside = True

    def read_left(self, tid: int) -> None:
        self.threads[tid].inside = False

    def read_home(self, tid: int) -> None:
        thread = self.threads.pop(tid, None)
        if thread and thread.stopped and not native().images_tell:
            self.forgetful.setdefault(thread.pid, set()).add(tid)

    def read_mapping(self, tid: int, size: int) -> None:
        self.threads[tid].mapping = size

    def read_area(self, pid: int, address: int, size: int) -> None:
        self.areas.setdefault(pid, {})[address] = size
        for thread in self.threads_of(pid):
            thread.mapping, thread.mapped = 0, None

    def read_gone(self, pid: int, address: int) -> None:
        self.areas.get(pid, {}).pop(address, None)

    def read_pair(self, tid: int, address: int) -> None:
        self.threads[tid].pair = address

    def read_control(self, tid: int, fd: int, number: int) -> None:
        self.threads[tid].control = fd, number

    def read_stopped(self, pid: int) -> None:
        self.stopped.add(pid)

    def read_held(self, fd: int) -> None:
        self.held.append(fd)

    def read_mapped(self, tid: int, address: int, size: int) -> None:
        self.threads[tid].mapped = address, size

    def read_ours(self, pid: int, files: list[tuple[int, int]]) -> None:
        self.ours.setdefault(pid, set()).update(files)
        for thread in self.threads_of(pid):
            thread.pair = 0  # known now, and the place is used for other things
