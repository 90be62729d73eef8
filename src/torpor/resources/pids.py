# SPDX-License-Identifier: Apache-2.0
"""PIDs: a restored tree has the same numbers as before, so they must be free.

A number stays in use as long as anything has it: a process, one of its threads, or the members of a process group or
session whose leader is long gone.  Also a process that has ended has it, until its parent collects its status: right
after a dump these are often what is left of the original, and they go by themselves, so they get a moment.
"""

import os
import time
from fcntl import F_SETOWN, fcntl

from torpor.engine.spawn import beyond_pid_max
from torpor.errors import RestoreFailed
from torpor.kernel.proc import Stat, parse_stat
from torpor.kernel.procfs import read_all
from torpor.resources.own import number_file
from torpor.typed import Iterable, Iterator, NamedTuple

PATIENCE = 2.0  # for what has ended already
_AWHILE = 0.002
_ELSEWHERE = "or restore in a PID namespace of its own (unshare -fp --mount-proc torpor restore, without -d)"


def too_great(pids: list[int]) -> Iterator[RestoreFailed]:
    """A refusal of the greatest of these PIDs, if this system has none that are so great (kernel.pid_max, which may be
    low again after a boot)."""
    greatest, end = max(pids), number_file("/proc/sys/kernel/pid_max")
    if end is not None and greatest >= end:
        yield beyond_pid_max(greatest)


def taken(pids: Iterable[int]) -> Iterator[RestoreFailed]:
    """A refusal for each of these PIDs that is in use."""
    deadline = time.monotonic() + PATIENCE
    probe, other = os.pipe2(os.O_CLOEXEC)
    try:
        for pid in pids:
            while _is_known(pid, probe):
                holders = _holders(pid)
                if holders and (time.monotonic() > deadline or not all(holder.ended for holder in holders)):
                    yield refusal(pid, holders)
                    break
                if not holders and time.monotonic() > deadline:  # we may not see who it is (hidepid)
                    yield refusal(pid, [])
                    break
                time.sleep(_AWHILE)
    finally:
        os.close(probe)
        os.close(other)


def _is_known(pid: int, probe: int) -> bool:
    """Whether it is the number of a process, a thread, a process group or a session; `probe`: any descriptor of ours.

    fcntl(2), F_SETOWN looks a number up whatever it stands for (fs/fcntl.c, f_setown), and needs no rights; kill(2)
    knows of no sessions.
    """
    try:
        fcntl(probe, F_SETOWN, pid)
    except ProcessLookupError:
        return False
    return True


class _Holder(NamedTuple):
    """A process by which a number is in use."""

    stat: Stat
    threads: int

    @property
    def ended(self) -> bool:
        """It waits for nothing but its parent."""
        return self.stat.state in "ZX" and self.threads <= 1

    @property
    def name(self) -> str:
        return os.fsdecode(self.stat.comm)


def _holder(pid: int) -> _Holder | None:
    try:
        return _Holder(parse_stat(read_all(f"/proc/{pid}/stat")), len(os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return None


def _holders(pid: int) -> list[_Holder]:
    """Its process; else the members of its group or session."""
    one = _holder(pid)  # of a thread, too: /proc has it, though it does not list it
    if one is not None:
        return [one]
    found = (_holder(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [holder for holder in found if holder is not None and pid in (holder.stat.pgrp, holder.stat.session)]


def refusal(pid: int, holders: list[_Holder]) -> RestoreFailed:
    if not holders:
        what, why, remedy = "", "something has it already", "end what has it"
    elif holders[0].ended:
        parent = _holder(holders[0].stat.ppid)
        whose = f"{holders[0].stat.ppid} ({parent.name})" if parent else f"{holders[0].stat.ppid}"
        what, why = (
            f" ({holders[0].name})",
            f"that process has ended, but its parent {whose} has not collected its status",
        )
        remedy = "end that parent"
    elif holders[0].stat.pid == pid:
        what, why, remedy = f" ({holders[0].name})", "a process has it already", "end that process"
    else:
        some = ", ".join(f"{holder.stat.pid} ({holder.name})" for holder in holders[:5])
        more = f" and {len(holders) - 5} more" if len(holders) > 5 else ""
        what, why, remedy = "", f"it is the process group or session of {some}{more}", "end them"
    return RestoreFailed(
        f"PID {pid} is taken{what}", f"the tree needs it, and {why}", f"{remedy}, {_ELSEWHERE}", code="pid-taken"
    )
