# SPDX-License-Identifier: Apache-2.0
"""What the guardian does when the engine has died: put every task back as the journal says.

Each process that was touched is stopped once more, all its threads.  Threads that were stepped, or wait in the
executor's loop, get their registers and masks; then our descriptors are closed and our areas unmapped in it, by stepped
calls, and it goes on.  A system call that the engine had interrupted is restarted by the kernel, as if nobody had come;
but not those that any stop ends: threads in these are kept (`engine.holding`) until the guardian has them made again.
"""

import os
import select
import time

from torpor import signals as signal
from torpor.engine.freeze import FrozenProcess, freeze
from torpor.engine.holding import Hold
from torpor.engine.ledger import Ledger, Thread
from torpor.engine.thaw import thaw_somehow
from torpor.engine.tracee import ALL_SIGNALS, Tracee
from torpor.errors import Refusal
from torpor.kernel import file_facts, ptrace
from torpor.kernel.inside import UNSEEN, seen_call
from torpor.kernel.syscall import call

PATIENCE_S = 60.0  # for a program that writes memory to a slow disk
_GOING_HOME_S = 15.0  # for tasks that go home by themselves
_PAUSE_S = 0.0005


class Rescue:
    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.ledger = Ledger()
        self.hold = Hold(engine, self.ledger)

    def before_release(self) -> None:
        """While the engine stands in its exit: take the executors' sockets; make sure that nobody runs on with wrong
        registers."""
        self.ledger.read()
        self.hold.stepped()
        pidfd = call("pidfd_open", self.engine, 0)
        for thread in self.ledger.threads.values():
            if thread.control and thread.inside:  # else nobody reads there, and the number may be another file's
                thread.socket = _fetch(pidfd, thread.control[0])
        for fd in self.ledger.held:
            _fetch(pidfd, fd)
        os.close(pidfd)
        self.hold.in_calls()

    def late(self, traced: bool) -> None:
        """The same where it has gone already: better late than never."""
        self.ledger.read()
        if not traced:
            self.hold.stepped()

    def run(self) -> None:
        """Once it has gone."""
        for pid in sorted(self.ledger.pids() | self.hold.caught | self.ledger.forgetful.keys()):
            try:
                self._process(pid)
            except Exception:
                pass  # it has ended, or somebody else traces it now; nobody is left whom we could tell, and others wait
        for pid in self.hold.pids:
            self.hold.end(pid)

    def _process(self, pid: int) -> None:
        threads = self.ledger.threads_of(pid)
        deadline = time.monotonic() + _GOING_HOME_S
        while True:
            process = self._freeze(pid)
            if not process.threads:
                return
            if self.hold.has_stopped(pid):
                for tracee in process.threads.values():
                    tracee.group_stop = 0  # it was we who stopped it
                    tracee.call_before = self.ledger.calls.get(tracee.tid, tracee.call_before)
            try:
                for thread in threads:
                    if thread.socket >= 0 and thread.tid in process.threads:
                        _finish_program(process.threads[thread.tid], thread)
                for tid in self.ledger.forgetful.get(pid, set()) & process.threads.keys() - self.ledger.threads.keys():
                    process.threads[tid].call_before = self.ledger.calls.get(tid, UNSEEN)
                    process.threads[tid].remember_rewound()
                for thread in threads:
                    if thread.tid in process.threads:
                        self._put_back(process.threads[thread.tid], thread)
                if self._in_areas(pid, process) and time.monotonic() < deadline:
                    continue  # still on its way home
                self._tidy(pid, process, threads)
                return
            finally:
                try:
                    self.hold.end(pid, process.threads.values())
                finally:
                    thaw_somehow(process.threads.values())
                time.sleep(_PAUSE_S)

    def _freeze(self, pid: int) -> FrozenProcess:
        """The engine may be dying still, and hold it."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return freeze(pid, children=False).processes[pid]
            except Refusal as refusal:
                if refusal.code != "traced" or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_S)

    def _put_back(self, tracee: Tracee, thread: Thread) -> None:
        """Make the tracee one that was found as the journal says: `let_go` puts that back."""
        arch = tracee.arch
        stepped = thread.pid in self.hold.pids and not thread.inside
        if stepped and thread.mapping:  # was the area mapped, and nobody came to write that down?
            address = arch.result(tracee.general)
            if arch.pc(tracee.general) == tracee.gadget + len(arch.instruction) and not -4096 < address < 0:
                self.ledger.areas.setdefault(thread.pid, {})[address] = thread.mapping
            thread.mapping = 0
        if stepped or (thread.inside and self._in_area(thread.pid, tracee)):
            tracee.adopt(thread.general, thread.mask, thread.specials)
            tracee.call_before = self.ledger.calls.get(tracee.tid, UNSEEN)  # it was in that, not in what we have seen
            if thread.pair:
                self._note_pair(tracee, thread.pair)
            if thread.mapped and thread.mapped[0]:
                self._note_mapped(tracee, *thread.mapped)
        elif tracee.mask | _LET_THROUGH == ALL_SIGNALS & ~_UNBLOCKABLE:
            tracee.adopt(tracee.general, thread.mask, {})

    def _note_pair(self, tracee: Tracee, address: int) -> None:
        try:
            data = tracee.read(address, 8)
            order = tracee.arch.word[0]
            for number in (int.from_bytes(data[at : at + 4], "little" if order == "<" else "big", signed=True)
                           for at in (0, 4)):  # fmt: skip
                if number >= 0:
                    facts = file_facts.stat(f"/proc/{tracee.tid}/fd/{number}")
                    self.ledger.read_ours(tracee.pid, [(facts.st_dev, facts.st_ino)])
        except OSError:
            pass  # used for something else by now, or closed

    def _note_mapped(self, tracee: Tracee, at: int, size: int) -> None:
        order = tracee.arch.word[0]
        address = int.from_bytes(tracee.read(at, tracee.arch.word_size), "little" if order == "<" else "big")
        if address and address < (1 << 8 * tracee.arch.word_size) - 4096:  # else it has not run, or failed
            self.ledger.read_area(tracee.pid, address, size)

    def _in_area(self, pid: int, tracee: Tracee) -> bool:
        # rt_sigreturn takes the frame that lies in the area, so the stack pointer counts too.
        places = tracee.arch.pc(tracee.general), tracee.arch.sp(tracee.general)
        return any(at <= place < at + size for at, size in self.ledger.areas.get(pid, {}).items() for place in places)

    def _in_areas(self, pid: int, process: FrozenProcess) -> bool:
        return any(self._in_area(pid, tracee) for tracee in process.threads.values())

    def _tidy(self, pid: int, process: FrozenProcess, threads: list[Thread]) -> None:
        """Close what is ours in the process, and unmap it."""
        leader = next(iter(process.threads.values()))
        close = [
            int(name)
            for name in os.listdir(f"/proc/{leader.tid}/fd")
            if self.ledger.ours.get(pid) and _identity(f"/proc/{leader.tid}/fd/{name}") in self.ledger.ours[pid]
        ]
        if not close and not self.ledger.areas.get(pid):
            return
        leader.block_signals()
        for fd in close:
            leader.step("close", fd)
        for address, size in self.ledger.areas.get(pid, {}).items():
            leader.step("munmap", address, size)


_LET_THROUGH = 1 << signal.SIGSYS - 1  # perhaps: Tracee.block_signals
_UNBLOCKABLE = 1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1


def _fetch(pidfd: int, fd: int) -> int:
    """The engine's descriptor, to keep a connection open; -1: closed already, and its tasks go home by themselves."""
    try:
        return call("pidfd_getfd", pidfd, fd, 0)
    except OSError:
        return -1


def _identity(path: str) -> tuple[int, int] | None:
    try:
        facts = file_facts.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _finish_program(tracee: Tracee, thread: Thread) -> None:
    """Let a program that runs in the executor come to its end (what it opens, it closes), then stop the task again."""
    assert thread.control
    ready = select.poll()
    ready.register(thread.socket, select.POLLIN)
    numbers = tracee.arch.SYSCALLS
    ptrace.cont(tracee.tid)
    tracee.stopped = False
    deadline = time.monotonic() + PATIENCE_S
    fed = False
    while not ready.poll(1) and time.monotonic() < deadline:
        tracee.notice()
        try:
            seen = seen_call(tracee.tid)
        except OSError:
            break
        on_socket = seen.args[:1] == (thread.control[1],)
        if (on_socket and seen.number == numbers["read"]) or seen.number == numbers["ppoll"]:
            break  # it has nothing to do, or has ended and closed its socket
        if on_socket and seen.number == numbers["recvmsg"] and not fed:  # for descriptors, which do not come any more
            os.write(thread.socket, bytes(8))
            fed = True
    tracee.stop_program()
    tracee.forget()
