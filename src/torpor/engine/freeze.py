# SPDX-License-Identifier: Apache-2.0
"""Stopping a process tree, every thread of every process, and finding all of it.

The tree changes while it is being stopped, so passes are made until one finds nothing new: a process whose threads are
all stopped makes no more threads and children.  Everything that was seen before is seized and interrupted first and
waited for afterwards, so a thousand threads stop side by side.
"""

import errno
import os
import time

from torpor import log
from torpor.engine import stops
from torpor.engine.stops import Kind
from torpor.engine.tracee import Tracee
from torpor.engine.waiting import check_cancelled
from torpor.errors import Refusal, TaskGone, TorporError
from torpor.kernel import ptrace
from torpor.kernel.proc import parse_pids, parse_stat
from torpor.kernel.process import kcmp
from torpor.kernel.procfs import read_all
from torpor.typed import NamedTuple

OPTIONS = ptrace.O_TRACESYSGOOD
_STUBBORN_S = 1.0  # how long a task may stay unstoppable (vfork, uninterruptible sleep) before it is refused
_SPIN_S = 0.0002  # how long to ask without a pause: most have stopped by then
_RELENT_S = 0.005  # before its vforked children are let run on
_QUICK_S = 0.005  # most stop sooner
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
    held: dict[int, Tracee] = {}
    try:
        return _freeze(root, held, children, time.monotonic() + timeout if timeout else float("inf"))
    except BaseException:
        for tracee in held.values():
            try:
                if not tracee.stopped:
                    _await_stop(tracee, 0.1, {})
                tracee.let_go()
            except (OSError, TorporError):
                pass  # gone, or unstoppable: the kernel lets go of it when the engine ends
        raise


def _freeze(root: int, held: dict[int, Tracee], with_children: bool, deadline: float) -> FrozenTree:
    processes: dict[int, FrozenProcess] = {}
    for pid in _tree(root) if with_children else [root]:
        _seize_all(pid, held)
    queue = [(root, 0)]
    for pid, ppid in queue:  # which grows meanwhile
        check_cancelled()
        threads: dict[int, Tracee] = {}
        while True:
            if time.monotonic() > deadline:
                raise Refusal(f"the tree of process {root}", "it could not be stopped in the time that --timeout gives",
                              "give it more: --timeout SECONDS", code="timeout")  # fmt: skip
            tids = _seize_all(pid, held)
            new = [tid for tid in tids if tid in held and tid not in threads]
            for tid in new:
                if _await_stop(held[tid], min(_STUBBORN_S, deadline - time.monotonic()), held):
                    threads[tid] = held[tid]
                else:
                    del held[tid]
            if not new:
                break
        if not threads and (pid == root or not _is_zombie(pid)):
            if pid == root:
                raise TaskGone(f"process {root} has ended")
            continue  # ended, and was reaped, while we came
        children = _children(pid, tids) if with_children else []
        zombie = pid not in threads
        processes[pid] = FrozenProcess(pid, ppid, threads, zombie, children)
        queue += [(child, pid) for child in children]
    for process in processes.values():
        first, *others = process.threads.values() or [None]
        for thread in others:
            assert first is not None and thread is not None
            thread.share_memory(first)
            thread.use_gadget_of(first)
        log.debug(f"stopped process {process.pid}, threads {list(process.threads)}, children {process.children}")
    log.info(f"stopped {len(processes)} processes, {sum(len(p.threads) for p in processes.values())} threads")
    return FrozenTree(root, processes)


def _tree(root: int) -> list[int]:
    """A first guess at the tree, from outside."""
    found = [root]
    for pid in found:
        try:
            found += _children(pid, _tids(pid))
        except (OSError, TaskGone):
            pass
    return found


def _tids(pid: int) -> list[int]:
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid))
    except OSError:
        raise TaskGone(f"there is no process {pid}", remedy="check the PID given with -t") from None


def _children(pid: int, tids: list[int]) -> list[int]:
    found: list[int] = []
    for tid in tids:
        try:
            found += parse_pids(read_all(f"/proc/{pid}/task/{tid}/children"))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                raise
    return found


def _is_zombie(pid: int) -> bool:
    try:
        return parse_stat(read_all(f"/proc/{pid}/stat")).state == "Z"
    except (OSError, TaskGone):
        return False


def _seize_all(pid: int, held: dict[int, Tracee]) -> list[int]:
    """Seize and interrupt what is not held yet; returns all TIDs."""
    try:
        tids = _tids(pid)
    except TaskGone:
        if held and pid not in held:
            return []
        raise
    for tid in tids:
        if tid in held:
            continue
        try:
            ptrace.seize(tid, OPTIONS)
            held[tid] = Tracee(tid, pid)
            held[tid].stopped = False
            held[tid].note_call()
            ptrace.interrupt(tid)
        except OSError as error:
            if error.errno == errno.ESRCH:
                held.pop(tid, None)
            elif error.errno == errno.EPERM:
                if not _explain_eperm(pid, tid):
                    continue
            else:
                raise
    return tids


def _explain_eperm(pid: int, tid: int) -> bool:
    """False for a dead task (it cannot be seized, and need not be); else raises Refusal."""
    from torpor.kernel.status import parse_status

    try:
        stat = parse_stat(read_all(f"/proc/{pid}/task/{tid}/stat"))
        if stat.state in "ZX":
            return False
        tracer = parse_status(read_all(f"/proc/{pid}/task/{tid}/status")).tracer
    except (OSError, TaskGone):
        return False
    subject = f"task {tid} ({stat.comm.decode(errors='replace')})"
    if tracer:
        raise Refusal(
            subject,
            f"process {tracer} traces it already (a debugger, strace, or another dump)",
            "end the tracer first",
            code="traced",
        )
    raise Refusal(subject, "no permission to trace it", "run as root, or with CAP_SYS_PTRACE", code="no-rights")


def _await_stop(tracee: Tracee, patience: float, held: dict[int, Tracee]) -> bool:
    """Wait until an interrupted task has stopped.  False: it ended instead."""
    start = time.monotonic()
    released: list[Tracee] = []
    try:
        while True:
            try:
                stop = stops.poll(tracee.tid)
            except ChildProcessError:
                return False
            if stop is None:
                waited = time.monotonic() - start
                if waited > _QUICK_S and _is_zombie(tracee.tid):
                    return False  # killed, but not told before its other threads have been waited for
                if waited > patience:
                    _refuse_stubborn(tracee)
                if waited > _RELENT_S and not released:
                    released = _release_vforked(tracee, held)
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
                break
            # A signal on its way to a handler when we came gets there; the interrupt stops the task right after.
            ptrace.cont(tracee.tid, stop.signal if stop.kind is Kind.SIGNAL else 0)
    finally:
        for child in released:
            try:
                ptrace.interrupt(child.tid)
            except ProcessLookupError:
                pass
    tracee.stopped = True
    return True


def _release_vforked(parent: Tracee, held: dict[int, Tracee]) -> list[Tracee]:
    """A parent in vfork cannot stop before its child has become another program, or ended: let such children run on.

    The kernel does not tell which child it waits for; it is one that lives in the parent's memory.
    """
    released = []
    for child in held.values():
        if child.pid == parent.pid or child.stopped:
            continue
        try:
            if parse_stat(read_all(f"/proc/{child.pid}/stat")).ppid != parent.pid:
                continue
            if kcmp(parent.tid, child.tid, KCMP_VM) != 0:
                continue
            stop = stops.poll(child.tid)
            if stop is None or stop.kind is Kind.ENDED:
                continue
            ptrace.cont(child.tid, stop.signal if stop.kind is Kind.SIGNAL else 0)
            released.append(child)
        except OSError:
            continue  # it ended just now, which is as good
    return released


def _refuse_stubborn(tracee: Tracee) -> None:
    of = f" of process {tracee.pid}" if tracee.pid != tracee.tid else ""
    why = "it does not stop: it waits for its vfork child, or sleeps uninterruptibly in the kernel"
    raise Refusal(f"task {tracee.tid}{of}", why, "try again in a moment", code="unstoppable")
