# SPDX-License-Identifier: Apache-2.0
"""How the guardian keeps tasks from running on when the engine lets go of them, by dying: it sends SIGSTOP while the
engine holds them still, and SIGCONT when it has them itself.

So it does with processes of which a thread was being stepped, which would run with wrong registers, and with those of
which a thread is in a call that our stop ends (`engine.caught`).  SIGSTOP goes to the very thread: sent to the process,
another thread could take it, and wait with it in a stop of the dying engine's, while this one is released.

SIGCONT does its work when it is sent.  It is then taken out again, or a handler would run, and where it is blocked it
would stay, to be found by sigwait(3) or signalfd(2).
"""

import os
import time

from torpor import signals as signal
from torpor.arch import native
from torpor.engine import caught, entered
from torpor.engine.ledger import Ledger
from torpor.engine.seizing import in_execve
from torpor.engine.stops import Kind
from torpor.engine.tracee import ALL_SIGNALS, Tracee
from torpor.errors import TorporError
from torpor.kernel import ptrace
from torpor.kernel.inside import RUNNING, UNSEEN, SeenCall, seen_call
from torpor.kernel.procfs import read_all
from torpor.kernel.status import parse_status
from torpor.kernel.syscall import call
from torpor.typed import Iterable

_ARRIVING_S = 0.2  # for threads that have been interrupted, and get no processor just now
_PAUSE_S = 0.0005


class Hold:
    """The processes that are kept so."""

    def __init__(self, engine: int, ledger: Ledger) -> None:
        self.engine, self.ledger = engine, ledger
        self.pids: set[int] = set()  # all of them
        self.caught: set[int] = set()  # those with threads in calls that our stop ends
        self.to_be_stopped: set[int] = set()  # by somebody else
        self._continued: set[int] = set()
        self._continuing: set[int] = set()  # those that had a SIGCONT of their own, of which SIGSTOP has robbed them

    def stepped(self) -> None:
        """Stop processes of which a thread was being stepped.  Where the engine has gone already: better late than
        never."""
        for thread in self.ledger.threads.values():
            if thread.inside:
                continue
            if thread.pid not in self.pids:
                self._begin(thread.pid)
            if not thread.stopped:  # else it stops by itself as soon as it is released
                _send(thread.pid, thread.tid, signal.SIGSTOP)

    def in_calls(self) -> None:
        """Keep threads in calls from which they would come back with EINTR, in all processes that were stopped."""
        for pid in self.ledger.seizing:
            try:
                self.catch(pid)
            except (OSError, TorporError):
                pass  # it has ended

    def catch(self, pid: int) -> None:
        """The same in one process."""
        ledger = self.ledger
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        # Whoever seizes a thread of a process that is inside execve(2) may have to wait for ever.
        if pid in ledger.halted or in_execve(tids) or any(caught.is_halting(pid, tid) for tid in tids):
            return
        held = {tid for tid in tids if self._is_held(tid)}
        until = time.monotonic() + _ARRIVING_S
        waiting = [
            tid
            for tid in held
            if tid not in ledger.threads and caught.is_in_ended_call(pid, self._seen_before(tid, until))
        ]
        if pid not in self.pids:
            if not waiting or caught.would_be_told(pid):
                return
            self._begin(pid)
        if native().call_before_stop:  # the others are going to be stopped by that as well
            for tid in set(tids) - held:
                ledger.calls[tid] = _seen(tid)
        for tid in waiting if native().call_before_stop else ():
            noted = ledger.calls.get(tid) or _noted(tid)
            _seen_arrived(tid, until)
            ledger.calls[tid] = entered.vouched(noted, tid)
        if waiting:
            self.caught.add(pid)
        for tid in waiting:
            _send(pid, tid, signal.SIGSTOP)

    def has_stopped(self, pid: int) -> bool:
        """Whether a process that is found stopped is so by us alone: whatever call that has ended is to be made again.

        SIGSTOP for one thread stops all, also those that the engine had let go, or put back without detaching: these
        are back in their calls by then.  (On s390x /proc/TID/syscall shows a call of the engine's for the latter.)
        """
        others = self.to_be_stopped | self.ledger.stopped | self.ledger.halted
        return pid in self.caught or pid in self.pids - others

    def end(self, pid: int, held: Iterable[Tracee] = ()) -> None:
        """Take back what we have stopped a process by.  While all its threads are `held`, so that none that was let go
        is stopped by another that takes its SIGSTOP afterwards; SIGCONT takes it from all."""
        stopped = any(thread.stopped for thread in self.ledger.threads_of(pid))
        if pid not in self.pids - self._continued - self.to_be_stopped - self.ledger.stopped or stopped:
            return
        self._continued.add(pid)
        for tracee in held:
            _send(pid, tracee.tid, signal.SIGCONT)  # sent to a first thread that has ended, it does nothing
            if pid not in self._continuing:
                _take_out(tracee, signal.SIGCONT)
            return
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    def _begin(self, pid: int) -> None:
        self.pids.add(pid)
        if caught.is_stop_pending(pid):
            self.to_be_stopped.add(pid)
        try:
            if caught.is_pending(pid, signal.SIGCONT):
                self._continuing.add(pid)
        except (OSError, TorporError):
            pass  # it has ended

    def _seen_before(self, tid: int, until: float) -> SeenCall:
        """Which call a thread is in, or was before the engine stopped it."""
        if tid in self.ledger.calls:
            return self.ledger.calls[tid]
        return _seen_arrived(tid, until)

    def _is_held(self, tid: int) -> bool:
        try:
            return parse_status(read_all(f"/proc/{tid}/status")).tracer == self.engine
        except (OSError, TorporError):
            return False  # it has ended


def _send(pid: int, tid: int, number: int) -> None:
    try:
        call("tgkill", pid, tid, number)
    except ProcessLookupError:
        pass


def _take_out(tracee: Tracee, number: int) -> None:
    """Have a stopped thread come to the signal that it was just sent, and to nothing else, and make nothing of it."""
    if not tracee.is_pending(number):
        return  # else we would wait for ever
    mask = ptrace.get_signal_mask(tracee.tid)
    ptrace.set_signal_mask(tracee.tid, ALL_SIGNALS & ~(1 << number - 1))
    ptrace.cont(tracee.tid)
    while (stop := tracee.wait()).signal != number or stop.kind != Kind.SIGNAL:
        ptrace.cont(tracee.tid, tracee.surprise(stop))
    ptrace.set_signal_mask(tracee.tid, mask)


def _noted(tid: int) -> SeenCall:
    try:
        return entered.note(native(), tid)
    except OSError:
        return UNSEEN  # it has ended


def _seen_arrived(tid: int, until: float) -> SeenCall:
    """In which call a thread is; one that runs may be on its way to the stop that the engine has asked for."""
    while (seen := _seen(tid)).number == RUNNING and time.monotonic() < until:
        time.sleep(_PAUSE_S)
    return seen


def _seen(tid: int) -> SeenCall:
    try:
        return seen_call(tid)
    except OSError:
        return UNSEEN  # it has ended
