# SPDX-License-Identifier: Apache-2.0
"""Seizing threads (PTRACE_SEIZE), and what may be in the way.

One thread's execve(2) is the trap.  It ends all others of its process and waits for their ends; but the end of a thread
that we trace counts only when we have asked for it.  All the while it holds the process's cred_guard_mutex, for which
PTRACE_SEIZE waits: whoever seizes the next thread then waits for himself, and for ever, as SIGKILL alone would end that
(ptrace_attach in kernel/ptrace.c, de_thread in fs/exec.c).  So another thread of ours, a `Watch`, asks for the ends
when seizing takes long.
"""

import errno
from _thread import allocate_lock, get_native_id, start_new_thread

from torpor import log
from torpor.arch import native
from torpor.engine import stops
from torpor.errors import Refusal, TaskGone
from torpor.kernel import ptrace
from torpor.kernel.inside import seen_number
from torpor.kernel.proc import parse_stat
from torpor.kernel.procfs import read_all
from torpor.typed import TYPE_CHECKING, Any, Iterable

if TYPE_CHECKING:
    from torpor.engine.tracee import Tracee

OPTIONS = ptrace.O_TRACESYSGOOD
_LOOK_S = 0.02  # a thread is seized in some microseconds


class Watch:
    """Over those who seize the threads of a process into `held`."""

    def __init__(self, held: "dict[int, Tracee]") -> None:
        self._held = held
        self._pid = 0  # whose threads are being seized
        self._end = allocate_lock()
        self._watching = False

    def __enter__(self) -> "Watch":
        self._end.acquire()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.release()

    def begin(self, pid: int, threads: int) -> None:
        """All these threads of a process are going to be seized."""
        if threads > 1 and not self._watching:
            self._watching = True
            try:
                start_new_thread(self._watch, ())
            except RuntimeError:  # a limit to threads; without the trap nobody misses it
                log.info("nobody watches over the freeze: no thread can be made")
        self._pid = pid

    def rest(self) -> None:
        """They are."""
        self._pid = 0

    def _watch(self) -> None:
        before = -1, -1
        while not self._end.acquire(timeout=_LOOK_S):
            now = self._pid, len(self._held)
            if self._pid and now == before:
                collect_ended(self._pid, self._held)
            before = now


def collect_ended(pid: int, held: "dict[int, Tracee]") -> None:
    """Ask for the ends of a process's threads: one that calls execve(2) waits for that."""
    for tid, tracee in list(held.items()):
        if tracee.pid == pid and tid != pid and stops.has_ended(tid):
            try:
                stops.poll(tid)
            except ChildProcessError:
                pass  # it has been asked for


def in_execve(tids: Iterable[int]) -> int:
    """Which of these threads sleeps inside execve(2), where nobody else could seize it; 0: none.  (One that was stopped
    on its way out shows the same call.)"""
    numbers = native().numbers_of(("execve", "execveat"))
    for tid in tids:
        try:
            if seen_number(tid) in numbers and parse_stat(read_all(f"/proc/{tid}/stat")).state in "SD":
                return tid
        except (OSError, TaskGone):
            pass  # it has ended
    return 0


def seize(pid: int, tid: int) -> bool:
    """True: it is traced by us; perhaps was already, under another number (execve(2) gives a thread the leader's).
    False: it has ended.  Raises Refusal."""
    for last in (False, False, True):
        try:
            ptrace.seize(tid, OPTIONS)
            return True
        except OSError as error:
            if error.errno == errno.ESRCH:
                return False
            if error.errno != errno.EPERM:
                raise
        if (ours := _explain_eperm(pid, tid, last)) is not None:
            return ours
    return False


def _explain_eperm(pid: int, tid: int, last: bool) -> bool | None:
    """True: we trace it.  False: it is dead (it cannot be seized, and need not be).  Else raises Refusal, unless nobody
    is to blame and this was not the `last` try: None, it had ended, and one that called execve(2) has its number."""
    from torpor.kernel.status import parse_status

    try:
        stat = parse_stat(read_all(f"/proc/{pid}/task/{tid}/stat"))
        if stat.state in "ZX":
            return False
        tracer = parse_status(read_all(f"/proc/{pid}/task/{tid}/status")).tracer
    except (OSError, TaskGone):
        return False
    if tracer == get_native_id():
        return True
    subject = f"task {tid} ({stat.comm.decode(errors='replace')})"
    if tracer:
        raise Refusal(
            subject,
            f"process {tracer} traces it already (a debugger, strace, or another dump)",
            "end the tracer first",
            code="traced",
        )
    if not last:
        return None
    raise Refusal(subject, "no permission to trace it", "run as root, or with CAP_SYS_PTRACE", code="no-rights")
