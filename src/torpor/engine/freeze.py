# SPDX-License-Identifier: Apache-2.0
"""Stopping a process tree, every thread of every process, and finding all of it.

The tree changes while it is being stopped, so passes are made until one finds nothing new: a process whose threads are
all stopped makes no more threads and children.  Everything that was seen before is seized and interrupted first and
waited for afterwards, so a thousand threads stop side by side.

A stopped process can still come by children: a child of its child's, which ended before we stopped it, if it is a
subreaper (prctl(2)).  And /proc/PID/task/TID/children may leave out a child where another ends while it is read
(get_children_pid in fs/proc/array.c).  So when all are stopped, those that have children are asked once more.
"""

import errno
import os
import time

from torpor import log
from torpor.engine import journal, stops
from torpor.engine.seizing import Watch, collect_ended, seize
from torpor.engine.stops import Kind
from torpor.engine.thaw import thaw_somehow
from torpor.engine.tracee import Tracee
from torpor.engine.waiting import check_cancelled
from torpor.errors import Refusal, TaskGone, TorporError
from torpor.kernel import ptrace
from torpor.kernel.proc import parse_pids, parse_stat
from torpor.kernel.process import kcmp
from torpor.kernel.procfs import read_all
from torpor.typed import NamedTuple

_STUBBORN_S = 1.0  # how long a task may stay unstoppable (vfork, uninterruptible sleep) before it is refused
_BUSY_S = 5.0  # ... where all that it waits for is a processor
_SPIN_S = 0.0002  # how long to ask without a pause: most have stopped by then
_RELENT_S = 0.005  # before its vforked children are let run on
_QUICK_S = 0.005  # most stop sooner
_AGAIN_S = 0.2  # before it is interrupted again: the first time may have met another, as execve(2) changes numbers
_LAST_S = 0.1  # how long all that do not stop together may take when we give up
_GUESSED = 64  # threads of a process whose children are seized beforehand; those of others when these have stopped
KCMP_VM = 1


class FrozenProcess(NamedTuple):
    """A stopped process: `threads` by TID, the leader first where it is alive; `children` are PIDs."""

    pid: int
    ppid: int
    threads: dict[int, Tracee]
    zombie: bool
    children: list[int]


class FrozenTree(NamedTuple):
    root: int
    processes: dict[int, FrozenProcess]  # parents before children


def freeze(root: int, children: bool = True, timeout: float = 0.0) -> FrozenTree:
    """Stop the whole tree below and with process `root`, or this process alone, in `timeout` seconds (0: however long).

    Raises TaskGone, Refusal (already traced, no rights, unstoppable); what had been stopped goes on then.
    """
    freezing = _Freezing(root, time.monotonic() + timeout if timeout else float("inf"))
    try:
        with freezing.watch:
            return freezing.run(children)
    except BaseException:
        thaw_somehow(thread for thread in freezing.held.values() if thread.stopped)  # these wait for no stubborn one
        last = time.monotonic() + _LAST_S
        for thread in freezing.held.values():
            try:
                if not thread.stopped and _await_stop(thread, last - time.monotonic(), {}):
                    thread.let_go()
            except (OSError, TorporError):
                pass  # gone, or unstoppable: the kernel lets go of it when the engine ends
        raise


class _Freezing:
    """A tree that is being stopped."""

    def __init__(self, root: int, deadline: float) -> None:
        self.root, self.deadline = root, deadline
        self.held: dict[int, Tracee] = {}  # what is seized, by TID
        self.watch = Watch(self.held)
        self.processes: dict[int, FrozenProcess] = {}
        self.queue = [(root, 0)]  # of processes and their parents
        self.noted: set[int] = set()  # PIDs in the journal
        self.mothers: dict[int, list[int]] = {}  # of processes that have children: threads that may have more

    def run(self, with_children: bool) -> FrozenTree:
        for pid in _tree(self.root) if with_children else [self.root]:
            self._seize_all(pid)
        for pid, ppid in self.queue:  # which grows meanwhile
            check_cancelled()
            self._stop(pid, ppid, with_children)
            if pid == self.queue[-1][0]:
                for mother, tids in self.mothers.items():
                    children = [child for tid in tids for child in _children(mother, tid)]
                    self._add(mother, [child for child in children if child not in self.processes])
        for process in self.processes.values():
            first, *others = process.threads.values() or [None]
            for thread in others:
                assert first is not None and thread is not None
                thread.share_memory(first)
                thread.use_gadget_of(first)
            log.debug(f"stopped process {process.pid}, threads {list(process.threads)}, children {process.children}")
        number = sum(len(process.threads) for process in self.processes.values())
        log.info(f"stopped {len(self.processes)} processes, {number} threads")
        return FrozenTree(self.root, self.processes)

    def _stop(self, pid: int, ppid: int, with_children: bool) -> None:
        """Stop all threads of a process, and enter it."""
        tids, threads = self._stop_threads(pid)
        zombie = pid not in threads
        if not threads and (pid == self.root or not _is_zombie(pid)):
            if pid == self.root:
                raise TaskGone(f"process {pid} has ended")
            return  # ended, and was reaped, while we came
        of = {tid: _children(pid, tid) for tid in tids} if with_children else {}
        self.processes[pid] = FrozenProcess(pid, ppid, threads, zombie, [])
        self._add(pid, [child for some in of.values() for child in some])
        if threads and any(of.values()):  # a leader that lives is the one who adopts
            self.mothers[pid] = [tid for tid, some in of.items() if some or zombie or tid == pid]

    def _add(self, pid: int, children: list[int]) -> None:
        """Enter the children of a stopped process.  The youngest is seized first: each may be about to make another and
        to end, faster than we come to it."""
        for child in reversed(children):
            if child not in self.held:
                self._seize_all(child)
        self.processes[pid].children.extend(children)
        self.queue += [(child, pid) for child in children]

    def _stop_threads(self, pid: int) -> tuple[list[int], dict[int, Tracee]]:
        """All threads of a process, and those that have been stopped: the others are dead."""
        held = self.held
        threads: dict[int, Tracee] = {}
        while True:
            left = self.deadline - time.monotonic()
            if left < 0:
                raise Refusal(f"the tree of process {self.root}",
                              "it could not be stopped in the time that --timeout gives",
                              "give it more: --timeout SECONDS", code="timeout")  # fmt: skip
            tids = self._seize_all(pid)
            for tid in threads.keys() - set(tids):  # ended by a thread that has called execve(2)
                del threads[tid], held[tid]
            if pid in threads and _is_another(pid):  # that thread, which has the leader's number now
                del threads[pid], held[pid]
                continue
            new = [tid for tid in tids if tid in held and tid not in threads]
            for tid in new:
                if _await_stop(held[tid], min(_STUBBORN_S, left), held, min(_BUSY_S, left), not threads):
                    threads[tid] = held[tid]
                else:
                    del held[tid]
            # One that is neither stopped nor dead has the leader's number by execve(2), or will: the leader comes last.
            if not new and all(tid in threads or stops.has_ended(tid) for tid in reversed(tids)):
                return tids, {tid: threads[tid] for tid in tids if tid in threads}

    def _seize_all(self, pid: int) -> list[int]:
        """Seize and interrupt what is not held yet; returns all TIDs."""
        held = self.held
        try:
            tids = _tids(pid)
        except TaskGone:
            if held and pid not in held:
                return []
            raise
        self.watch.begin(pid, len(tids))
        if pid not in self.noted:
            self.noted.add(pid)
            journal.note("seizing", pid)
        for tid in tids:
            if tid not in held and seize(pid, tid):
                held[tid] = _interrupted(tid, pid)
                held[tid].note_call()
                if held[tid].arch.call_before_stop:
                    journal.note("call", tid, tuple(held[tid].call_before))
                    held[tid].note_call()  # once more: it may be over soon
                if not _interrupt(tid):
                    _interrupt(pid)  # by execve(2) it has the leader's number
        self.watch.rest()
        return tids


def _interrupted(tid: int, pid: int) -> Tracee:
    tracee = Tracee(tid, pid)
    tracee.stopped = False
    return tracee


def _interrupt(tid: int) -> bool:
    """False: it has ended, and whoever waits for its stop is told so."""
    try:
        ptrace.interrupt(tid)
    except ProcessLookupError:
        return False
    return True


def _is_another(pid: int) -> bool:
    """Whether the task that we have stopped under this number is no longer the one that has it: what has it now runs,
    or has stopped since.  (A stop can be waited for once.)"""
    try:
        ptrace.get_signal_mask(pid)
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | stops.WALL) is not None
    except (ProcessLookupError, ChildProcessError):
        return True


def _tree(root: int) -> list[int]:
    """A first guess at the tree, from outside."""
    found = [root]
    for pid in found:
        try:
            for tid in _tids(pid)[:_GUESSED]:
                found += _children(pid, tid)
        except (OSError, TaskGone):
            pass
    return found


def _tids(pid: int) -> list[int]:
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid))
    except OSError:
        raise TaskGone(f"there is no process {pid}", remedy="check the PID given with -t") from None


def _children(pid: int, tid: int) -> list[int]:
    try:
        return parse_pids(read_all(f"/proc/{pid}/task/{tid}/children"))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH):
            raise
        return []


def _is_zombie(pid: int) -> bool:
    return _state(pid) == "Z"


def _state(pid: int) -> str:
    """The letter of proc_pid_stat(5); empty: it is gone."""
    try:
        return parse_stat(read_all(f"/proc/{pid}/stat")).state
    except (OSError, TaskGone):
        return ""


def _wchan(tid: int) -> str:
    """The kernel function that a task sleeps in."""
    try:
        return read_all(f"/proc/{tid}/wchan").decode()
    except OSError:
        return "?"


def _await_stop(
    tracee: Tracee, patience: float, held: dict[int, Tracee], if_busy: float = 0.0, first: bool = False
) -> bool:
    """Wait until an interrupted task has stopped; `patience` in seconds, another where others have the processors.
    `first`: of its process.  False: it ended instead."""
    start = time.monotonic()
    again = _AGAIN_S
    released: set[int] = set()
    try:
        while True:
            try:
                stop = None
                if not first or (halted := stops.peek_group_stop(tracee.tid)) is not None:
                    if first and halted:  # once we have been told, nothing shows that any more
                        journal.note("halted", tracee.pid)
                    stop = stops.poll(tracee.tid)
            except ChildProcessError:
                return False
            if stop is None:
                waited = time.monotonic() - start
                if waited > _QUICK_S and tracee.tid == tracee.pid and _is_zombie(tracee.pid):
                    return False  # killed, but not told before its other threads have been waited for
                # "t": it has stopped since we asked.
                if waited > patience and (waited > if_busy or _state(tracee.tid) not in ("R", "t")):
                    _refuse_stubborn(tracee)
                if waited > again:
                    again += _AGAIN_S
                    _interrupt(tracee.tid)
                if waited > _RELENT_S:
                    collect_ended(tracee.pid, held)
                    released |= _release_vforked(tracee, held)
                if waited < _SPIN_S:
                    os.sched_yield()
                else:
                    time.sleep(_SPIN_S)
                continue
            if stop.kind is Kind.ENDED:
                return False
            if stop.kind is Kind.INTERRUPTED:
                break
            if stop.kind is Kind.GROUP_STOP:
                tracee.group_stop = stop.signal
                journal.note("halted", tracee.pid)
                break
            # A signal on its way to a handler when we came gets there; the interrupt stops the task right after.
            ptrace.cont(tracee.tid, stop.signal if stop.kind is Kind.SIGNAL else 0)
    finally:
        for tid in released:
            _interrupt(tid)
    tracee.stopped = True
    return True


def _release_vforked(parent: Tracee, held: dict[int, Tracee]) -> set[int]:
    """A parent in vfork cannot stop before its child has become another program, or ended: let such children run on.

    The kernel does not tell which child it waits for; it is one that lives in the parent's memory, and may itself wait
    for children.  Returns the TIDs of those that go on.
    """
    released = set()
    family = {parent.pid}
    for child in held.values():  # each was found after its parent
        if child.pid in family or child.stopped:
            continue
        try:
            ppid = parse_stat(read_all(f"/proc/{child.pid}/stat")).ppid
            if ppid not in family or (ppid == parent.pid and kcmp(parent.tid, child.tid, KCMP_VM) != 0):
                continue
            family.add(child.pid)
            stop = stops.poll(child.tid)
            if stop is None or stop.kind is Kind.ENDED:
                continue
            ptrace.cont(child.tid, stop.signal if stop.kind is Kind.SIGNAL else 0)
            released.add(child.tid)
        except OSError:
            continue  # it ended just now, which is as good
    return released


def _refuse_stubborn(tracee: Tracee) -> None:
    of = f" of process {tracee.pid}" if tracee.pid != tracee.tid else ""
    if (state := _state(tracee.tid)) == "R":
        why, remedy = "it gets no processor", "try again when the machine has less to do"
    else:
        where = f"{state} in {_wchan(tracee.tid)}"
        why = f"it waits for its vfork child, or sleeps uninterruptibly in the kernel ({where})"
        remedy = "try again in a moment"
    raise Refusal(f"task {tracee.tid}{of}", f"it does not stop: {why}", remedy, code="unstoppable")
