# SPDX-License-Identifier: Apache-2.0
"""What the guardian does when the engine has died: put every task back as the journal says.

Each process that was touched is stopped once more, all its threads.  Threads that were stepped, or wait in the
executor's loop, get their registers and masks; then our descriptors are closed and our areas unmapped in it, by stepped
calls, and it goes on.  A system call that the engine had interrupted is restarted by the kernel, as if nobody had come;
but not epoll_wait(2) and the like, which any stop ends: threads that stand in such a call are sent SIGSTOP, too, while
the engine still holds them, so that none comes back from it before the guardian has it made again (`engine.caught`).
"""

import os
import select
import time

from torpor import signals as signal
from torpor.arch import native
from torpor.engine import caught, journal
from torpor.engine.freeze import FrozenProcess, freeze
from torpor.engine.seizing import in_execve
from torpor.engine.thaw import thaw_somehow
from torpor.engine.tracee import ALL_SIGNALS, Tracee
from torpor.errors import Refusal, TorporError
from torpor.kernel import ptrace
from torpor.kernel.proc import parse_stat
from torpor.kernel.procfs import read_all
from torpor.kernel.status import parse_status
from torpor.kernel.syscall import call
from torpor.typed import Any

PATIENCE_S = 60.0  # for a program that writes memory to a slow disk
_GOING_HOME_S = 15.0  # for tasks that go home by themselves
_ARRIVING_S = 0.2  # for threads that have been interrupted, and get no processor just now
_PAUSE_S = 0.0005


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


class Rescue:
    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.threads: dict[int, Thread] = {}
        self.areas: dict[int, dict[int, int]] = {}  # by PID: address -> size
        self.ours: dict[int, set[tuple[int, int]]] = {}  # by PID: device and inode
        self.sent_stop: set[int] = set()
        self.continued: set[int] = set()
        self.to_be_stopped: set[int] = set()  # by somebody else
        self.seizing: list[int] = []  # PIDs
        self.calls: dict[int, bytes] = {}  # by TID, where they can be seen only before the stop
        self.halted: set[int] = set()  # PIDs
        self.caught: set[int] = set()  # PIDs of processes with threads in calls that our stop would end
        self.held: list[int] = []
        self._read_already = False

    # -- while the engine stands in its exit --------------------------------------------------------------------------
    def before_release(self) -> None:
        """Take the executors' sockets; make sure that nobody runs on with wrong registers."""
        self._read()
        self.hurry()
        pidfd = call("pidfd_open", self.engine, 0)
        for thread in self.threads.values():
            if thread.control:
                thread.socket = _fetch(pidfd, thread.control[0])
        for fd in self.held:
            _fetch(pidfd, fd)
        os.close(pidfd)
        for pid in self.seizing:
            try:
                self._catch(pid)
            except (OSError, TorporError):
                pass  # it has ended

    def hurry(self) -> None:
        """Stop processes of which a thread was being stepped.  Where the engine has gone already: better late than
        never.

        SIGSTOP goes to that very thread: sent to the process, another thread could take it, and wait with it in a stop
        of the dying engine's, while this one is released."""
        self._read()
        for thread in self.threads.values():
            if not thread.inside:
                if thread.pid not in self.sent_stop and _stop_pending(thread.pid):
                    self.to_be_stopped.add(thread.pid)
                self.sent_stop.add(thread.pid)
                if thread.stopped:
                    continue  # it stops by itself as soon as it is released
                try:
                    call("tgkill", thread.pid, thread.tid, signal.SIGSTOP)
                except ProcessLookupError:
                    pass

    def _catch(self, pid: int) -> None:
        """Keep threads of a process in calls from which they would come back with EINTR."""
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        # Whoever seizes a thread of a process that is inside execve(2) may have to wait for ever.
        if pid in self.halted or in_execve(tids) or any(caught.is_halting(pid, tid) for tid in tids):
            return
        held = {tid for tid in tids if self._holds(tid)}
        until = time.monotonic() + _ARRIVING_S
        waiting = [tid for tid in held if tid not in self.threads and self._in_ended_call(tid, until)]
        if not waiting:
            return
        if pid not in self.sent_stop:
            first = self.threads.get(pid)
            if caught.would_notice(pid, first.mask if first else None):
                return
            if _stop_pending(pid):
                self.to_be_stopped.add(pid)
        if native().call_before_stop:  # the others are going to be stopped by that as well
            for tid in set(tids) - held:
                self.calls[tid] = _said(tid)
        self.caught.add(pid)
        self.sent_stop.add(pid)
        for tid in waiting:
            try:
                call("tgkill", pid, tid, signal.SIGSTOP)
            except ProcessLookupError:
                pass

    def _in_ended_call(self, tid: int, until: float) -> bool:
        said = self.calls.get(tid) or _said(tid)
        while said.startswith(b"running") and tid not in self.calls and time.monotonic() < until:
            time.sleep(_PAUSE_S)  # it is on its way to the stop that the engine has asked for
            said = _said(tid)
        return caught.is_in_ended_call(said)

    def _holds(self, tid: int) -> bool:
        try:
            return parse_status(read_all(f"/proc/{tid}/status")).tracer == self.engine
        except (OSError, TorporError):
            return False  # it has ended

    def _read(self) -> None:
        if not self._read_already:
            self._read_already = True
            for kind, *facts in journal.records():
                getattr(self, f"_{kind}")(*facts)

    def _seizing(self, pid: int) -> None:
        if pid not in self.seizing:
            self.seizing.append(pid)

    def _call(self, tid: int, said: bytes) -> None:
        self.calls[tid] = said

    def _halted(self, pid: int) -> None:
        self.halted.add(pid)

    def _touched(self, tid: int, *facts: Any) -> None:
        before = self.threads.get(tid)
        self.threads[tid] = Thread(tid, *facts)
        if before:
            self.threads[tid].control = before.control

    def _inside(self, tid: int) -> None:
        self.threads[tid].inside = True

    def _left(self, tid: int) -> None:
        self.threads[tid].inside = False

    def _home(self, tid: int) -> None:
        self.threads.pop(tid, None)

    def _mapping(self, tid: int, size: int) -> None:
        self.threads[tid].mapping = size

    def _area(self, pid: int, address: int, size: int) -> None:
        self.areas.setdefault(pid, {})[address] = size
        for thread in self.threads.values():
            if thread.pid == pid:
                thread.mapping, thread.mapped = 0, None

    def _gone(self, pid: int, address: int) -> None:
        self.areas.get(pid, {}).pop(address, None)

    def _pair(self, tid: int, address: int) -> None:
        self.threads[tid].pair = address

    def _control(self, tid: int, fd: int, number: int) -> None:
        self.threads[tid].control = fd, number

    def _stopped(self, pid: int) -> None:
        self.to_be_stopped.add(pid)

    def _held(self, fd: int) -> None:
        self.held.append(fd)

    def _mapped(self, tid: int, address: int, size: int) -> None:
        self.threads[tid].mapped = address, size

    def _ours(self, pid: int, files: list[tuple[int, int]]) -> None:
        self.ours.setdefault(pid, set()).update(files)
        for thread in self.threads.values():
            if thread.pid == pid:
                thread.pair = 0  # known now, and the place is used for other things

    # -- afterwards ---------------------------------------------------------------------------------------------------
    def run(self) -> None:
        self._read()
        pids = (
            {thread.pid for thread in self.threads.values()}
            | {pid for pid, areas in self.areas.items() if areas}
            | self.caught
        )
        for pid in sorted(pids):
            try:
                self._process(pid)
            except Exception:
                pass  # it has ended, or somebody else traces it now; nobody is left whom we could tell, and others wait
        for pid in self.sent_stop:
            self._continue(pid)

    def _continue(self, pid: int) -> None:
        """Take back what we have stopped a process by.  While its threads are held, so that none that was let go is
        stopped by another that takes its SIGSTOP afterwards; SIGCONT takes it from all.  The first thread alone gets
        that, which cares least (`engine.caught`)."""
        stopped = any(thread.stopped for thread in self.threads.values() if thread.pid == pid)
        if pid in self.sent_stop - self.continued - self.to_be_stopped and not stopped:
            self.continued.add(pid)
            try:
                call("tgkill", pid, pid, signal.SIGCONT)
            except ProcessLookupError:
                pass

    def _process(self, pid: int) -> None:
        threads = [thread for thread in self.threads.values() if thread.pid == pid]
        deadline = time.monotonic() + _GOING_HOME_S
        while True:
            process = self._freeze(pid)
            if not process.threads:
                return
            if pid in self.caught:
                for tracee in process.threads.values():
                    tracee.group_stop = 0  # it was we who stopped it
                    tracee.call_before = self.calls.get(tracee.tid, tracee.call_before)
            try:
                for thread in threads:
                    if thread.socket >= 0 and thread.tid in process.threads:
                        _finish_program(process.threads[thread.tid], thread)
                for thread in threads:
                    if thread.tid in process.threads:
                        self._put_back(process.threads[thread.tid], thread)
                if self._in_areas(pid, process) and time.monotonic() < deadline:
                    continue  # still on its way home
                self._tidy(pid, process, threads)
                return
            finally:
                self._continue(pid)
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
        stepped = thread.pid in self.sent_stop and not thread.inside
        if stepped and thread.mapping:  # was the area mapped, and nobody came to write that down?
            address = arch.result(tracee.general)
            if arch.pc(tracee.general) == tracee.gadget + len(arch.instruction) and not -4096 < address < 0:
                self.areas.setdefault(thread.pid, {})[address] = thread.mapping
            thread.mapping = 0
        if stepped or (thread.inside and self._in_area(thread.pid, tracee)):
            tracee.adopt(thread.general, thread.mask, thread.specials)
            if thread.pair:
                self._note_pair(tracee, thread.pair)
            if thread.mapped and thread.mapped[0]:
                self._note_mapped(tracee, *thread.mapped)
        elif tracee.mask == ALL_SIGNALS & ~_UNBLOCKABLE:
            tracee.adopt(tracee.general, thread.mask, {})

    def _note_pair(self, tracee: Tracee, address: int) -> None:
        try:
            data = tracee.read(address, 8)
            order = tracee.arch.word[0]
            for number in (int.from_bytes(data[at : at + 4], "little" if order == "<" else "big", signed=True)
                           for at in (0, 4)):  # fmt: skip
                if number >= 0:
                    facts = os.stat(f"/proc/{tracee.tid}/fd/{number}")
                    self._ours(tracee.pid, [(facts.st_dev, facts.st_ino)])
        except OSError:
            pass  # used for something else by now, or closed

    def _note_mapped(self, tracee: Tracee, at: int, size: int) -> None:
        order = tracee.arch.word[0]
        address = int.from_bytes(tracee.read(at, tracee.arch.word_size), "little" if order == "<" else "big")
        if address and address < (1 << 8 * tracee.arch.word_size) - 4096:  # else it has not run, or failed
            self._area(tracee.pid, address, size)

    def _in_area(self, pid: int, tracee: Tracee) -> bool:
        # rt_sigreturn takes the frame that lies in the area, so the stack pointer counts too.
        places = tracee.arch.pc(tracee.general), tracee.arch.sp(tracee.general)
        return any(at <= place < at + size for at, size in self.areas.get(pid, {}).items() for place in places)

    def _in_areas(self, pid: int, process: FrozenProcess) -> bool:
        return any(self._in_area(pid, tracee) for tracee in process.threads.values())

    def _tidy(self, pid: int, process: FrozenProcess, threads: list[Thread]) -> None:
        """Close what is ours in the process, and unmap it."""
        leader = next(iter(process.threads.values()))
        close = [
            int(name)
            for name in os.listdir(f"/proc/{leader.tid}/fd")
            if self.ours.get(pid) and _identity(f"/proc/{leader.tid}/fd/{name}") in self.ours[pid]
        ]
        if not close and not self.areas.get(pid):
            return
        leader.block_signals()
        for fd in close:
            leader.step("close", fd)
        for address, size in self.areas.get(pid, {}).items():
            leader.step("munmap", address, size)


_UNBLOCKABLE = 1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1


def _fetch(pidfd: int, fd: int) -> int:
    """The engine's descriptor, to keep a connection open; -1: closed already, and its tasks go home by themselves."""
    try:
        return call("pidfd_getfd", pidfd, fd, 0)
    except OSError:
        return -1


def _said(tid: int) -> bytes:
    """By /proc/TID/syscall; nothing if it has ended."""
    try:
        return read_all(f"/proc/{tid}/syscall")
    except OSError:
        return b""


def _stop_pending(pid: int) -> bool:
    """Whether somebody has sent SIGSTOP: nobody has taken it yet, or a thread stands in the stop in which it would have
    been told to the engine (its exit code is the signal's number then)."""
    try:
        with open(f"/proc/{pid}/status") as file:
            shared = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd:", "ShdPnd:"))]
        stats = [parse_stat(read_all(f"/proc/{pid}/task/{tid}/stat")) for tid in os.listdir(f"/proc/{pid}/task")]
    except (OSError, TorporError):
        return False
    stop = 1 << signal.SIGSTOP - 1
    return any(mask & stop for mask in shared) or any(s.state == "t" and s.exit_code == signal.SIGSTOP for s in stats)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _finish_program(tracee: Tracee, thread: Thread) -> None:
    """Let a program that runs in the executor come to its end (what it opens, it closes), then stop the task again."""
    assert thread.control
    ready = select.poll()
    ready.register(thread.socket, select.POLLIN)
    waiting, awaiting = (f"{tracee.arch.SYSCALLS[name]} {thread.control[1]:#x} " for name in ("read", "recvmsg"))
    ptrace.cont(tracee.tid)
    tracee.stopped = False
    deadline = time.monotonic() + PATIENCE_S
    fed = False
    while not ready.poll(1) and time.monotonic() < deadline:
        tracee.notice()
        try:
            with open(f"/proc/{tracee.tid}/syscall") as file:
                now = file.read()
        except OSError:
            break
        if now.startswith(waiting) or now.split(" ", 1)[0] == str(tracee.arch.SYSCALLS["ppoll"]):
            break  # it has nothing to do, or has ended and closed its socket
        if now.startswith(awaiting) and not fed:  # for descriptors, which do not come any more
            os.write(thread.socket, bytes(8))
            fed = True
    tracee.stop_program()
    tracee.forget()
