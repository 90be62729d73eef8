# SPDX-License-Identifier: Apache-2.0
"""Which threads of a dying engine's have to be kept from running, and whether their process may be stopped for that.

The kernel ends epoll_wait(2) and the like with EINTR when their thread is stopped by whomever.  As long as the engine
lives it makes them again.  When it has died, the guardian can only if no thread comes back first: it sends SIGSTOP
while the engine still holds them, seizes them, and sends SIGCONT.  That is for processes that would not notice it.
"""

from torpor import signals as signal
from torpor.arch import native
from torpor.engine import stops
from torpor.errors import TorporError
from torpor.kernel import ptrace
from torpor.kernel.proc import parse_stat
from torpor.kernel.procfs import read_all
from torpor.kernel.status import parse_status

_CONT = 1 << signal.SIGCONT - 1


def is_in_ended_call(said: bytes) -> bool:
    """Whether a thread is in a call that any stop ends.  `said`: by /proc/TID/syscall, a number and the arguments."""
    number, _, rest = said.partition(b" ")
    return number.isdigit() and native().ends_by_any_stop(int(number), int(rest.partition(b" ")[0], 16))


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


def would_notice(pid: int, mask: int | None = None) -> bool:
    """Whether SIGSTOP and SIGCONT would be more than a pause to a process, or to others.

    SIGCONT runs a handler, or stays and may be waited for (sigwait(3), signalfd(2)) where the first thread blocks it:
    kill(2) asks that one whether it ignores a signal.  And a shell would say that its job was stopped, and take the
    terminal from it.  `mask`: what the first thread blocks, where that is not what it blocks just now.
    """
    status = parse_status(read_all(f"/proc/{pid}/status"))
    if (status.caught | (status.blocked if mask is None else mask)) & _CONT:
        return True
    stat = parse_stat(read_all(f"/proc/{pid}/stat"))
    if not stat.ppid:
        return False
    parent = parse_stat(read_all(f"/proc/{stat.ppid}/stat"))
    return parent.session == stat.session and parent.pgrp != stat.pgrp
