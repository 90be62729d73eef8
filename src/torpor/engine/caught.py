# SPDX-License-Identifier: Apache-2.0
"""Which threads of a dying engine's have to be kept from running, and whether their process may be stopped for that.

The kernel ends epoll_wait(2) and the like with EINTR when their thread is stopped by whomever, and so it does calls on
sockets that have a time limit.  As long as the engine lives it makes them again.  When it has died, the guardian can
only if no thread comes back first: it sends SIGSTOP while the engine still holds them, seizes them, and sends SIGCONT.
That is for processes that would not notice it.
"""

import errno
import os

from torpor import signals as signal
from torpor.arch import native
from torpor.engine import stops
from torpor.engine.timelimit import has_time_limit
from torpor.errors import TorporError
from torpor.kernel import ptrace
from torpor.kernel.inside import SeenCall
from torpor.kernel.proc import parse_stat
from torpor.kernel.procfs import read_all, read_memory
from torpor.kernel.status import parse_status, parse_thread_status


def is_in_ended_call(pid: int, seen: SeenCall) -> bool:
    """Whether a thread of this process is in a call that our stop has ended, or will."""
    arch = native()
    if seen.number < 0 or not arch.ends_by_a_stop(seen.number, seen.args[0]):
        return False
    if arch.ends_by_any_stop(seen.number, seen.args[0]):
        return True

    def read(address: int, length: int) -> bytes:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = read_memory(memory, length, address)
        finally:
            os.close(memory)
        if len(data) != length:
            raise OSError(errno.EIO, "short read of task memory")
        return data

    return has_time_limit(arch, pid, seen.number, seen.args, read)


def is_halting(pid: int, tid: int) -> bool:
    """Whether a thread stands in a stop by job control of which the engine has not heard yet.

    /proc/TID/stat would not tell: there the exit code is the process's (do_task_stat in fs/proc/array.c), the bare
    signal, and 0 once the parent has heard of the stop.
    """
    try:
        code = parse_stat(read_all(f"/proc/{pid}/task/{tid}/stat")).exit_code
    except (OSError, TorporError):
        return False  # it has ended
    return code >> 8 == ptrace.EVENT_STOP and code & 0x7F in stops.STOP_SIGNALS


def would_be_told(pid: int) -> bool:
    """Whether SIGSTOP and SIGCONT would be more than a pause to others: a shell would say that its job was stopped, and
    take the terminal from it.  (The process itself learns nothing of SIGCONT: `engine.holding`.)"""
    stat = parse_stat(read_all(f"/proc/{pid}/stat"))
    if not stat.ppid:
        return False
    parent = parse_stat(read_all(f"/proc/{stat.ppid}/stat"))
    return parent.session == stat.session and parent.pgrp != stat.pgrp


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal waits for the process, or for any of its threads."""
    waiting = parse_status(read_all(f"/proc/{pid}/status")).shared_pending
    for tid in os.listdir(f"/proc/{pid}/task"):
        waiting |= parse_thread_status(read_all(f"/proc/{pid}/task/{tid}/status")).pending
    return bool(waiting & 1 << number - 1)


def is_stop_pending(pid: int) -> bool:
    """Whether somebody has sent SIGSTOP: nobody has taken it yet, a thread that had been let go has taken it and has
    stopped, or one stands in the stop in which it would have been told to the engine (its exit code is the signal's
    number then)."""
    stop = 1 << signal.SIGSTOP - 1
    try:
        status = parse_status(read_all(f"/proc/{pid}/status"))
        stats = [parse_stat(read_all(f"/proc/{pid}/task/{tid}/stat")) for tid in os.listdir(f"/proc/{pid}/task")]
    except (OSError, TorporError):
        return False
    pending = bool((status.pending | status.shared_pending) & stop)
    return pending or any(
        stat.state == "T" or (stat.state == "t" and stat.exit_code == signal.SIGSTOP) for stat in stats
    )
