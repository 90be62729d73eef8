# SPDX-License-Identifier: Apache-2.0
"""What /proc/PID shows of a task, as typed facts: parsers from bytes, no I/O (proc_pid_*(5)).

Every parser takes the content of one file and raises ParseError for what it cannot read; unknown lines and fields, of
a newer kernel, are passed over.  Surprising:

- The name of a task may hold anything but NUL: in `stat` it stands in parentheses unescaped, ")" and newlines too
  (only the last ")" counts).
- Fields that need ptrace rights (addresses in `stat`) read as 0 without them, not as an error.
- IDs are translated into the PID and user namespace of the /proc mount or the reader; 0 or 65534 where they have none.
"""

import resource
import struct

from torpor.kernel.procfs import ParseError
from torpor.typed import NamedTuple

INFINITY = (1 << 64) - 1  # RLIM64_INFINITY


class Stat(NamedTuple):
    """/proc/PID/stat, field by field (proc_pid_stat(5)); times in clock ticks, addresses as numbers."""

    pid: int
    comm: bytes
    state: str
    ppid: int
    pgrp: int
    session: int
    tty_nr: int  # device number of the controlling terminal, 0: none
    tpgid: int  # foreground process group of that terminal, -1: none
    flags: int  # PF_*
    minflt: int
    cminflt: int
    majflt: int
    cmajflt: int
    utime: int
    stime: int
    cutime: int
    cstime: int
    priority: int
    nice: int
    num_threads: int
    itrealvalue: int
    starttime: int  # with the pid it names the task for ever (of this boot)
    vsize: int
    rss: int
    rsslim: int
    startcode: int
    endcode: int
    startstack: int
    kstkesp: int
    kstkeip: int
    signal: int
    blocked: int
    sigignore: int
    sigcatch: int
    wchan: int
    nswap: int
    cnswap: int
    exit_signal: int
    processor: int
    rt_priority: int
    policy: int
    delayacct_blkio_ticks: int
    guest_time: int
    cguest_time: int
    start_data: int
    end_data: int
    start_brk: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    exit_code: int  # wait status


_STAT_NUMBERS = len(Stat._fields) - 3

PF_EXITING = 0x4


def parse_stat(data: bytes) -> Stat:
    first, last = data.find(b"("), data.rfind(b")")
    try:
        state, *numbers = data[last + 2 :].split()
        if first < 0 or last < first or len(numbers) < _STAT_NUMBERS:
            raise ValueError
        fields = map(int, numbers[:_STAT_NUMBERS])
        return Stat._make((int(data[:first]), data[first + 1 : last], state.decode("ascii"), *fields))
    except ValueError:
        raise ParseError("stat", data) from None


class Limit(NamedTuple):
    """struct rlimit; INFINITY is unlimited."""

    soft: int
    hard: int


# The kernel's names, in the order of the numbers (fs/proc/base.c, lnames; include/uapi/asm-generic/resource.h).
LIMITS = {
    b"Max cpu time": resource.RLIMIT_CPU,
    b"Max file size": resource.RLIMIT_FSIZE,
    b"Max data size": resource.RLIMIT_DATA,
    b"Max stack size": resource.RLIMIT_STACK,
    b"Max core file size": resource.RLIMIT_CORE,
    b"Max resident set": resource.RLIMIT_RSS,
    b"Max processes": resource.RLIMIT_NPROC,
    b"Max open files": resource.RLIMIT_NOFILE,
    b"Max locked memory": resource.RLIMIT_MEMLOCK,
    b"Max address space": resource.RLIMIT_AS,
    b"Max file locks": 10,  # RLIMIT_LOCKS, which Python does not name
    b"Max pending signals": resource.RLIMIT_SIGPENDING,
    b"Max msgqueue size": resource.RLIMIT_MSGQUEUE,
    b"Max nice priority": resource.RLIMIT_NICE,
    b"Max realtime priority": resource.RLIMIT_RTPRIO,
    b"Max realtime timeout": resource.RLIMIT_RTTIME,
}


def parse_limits(data: bytes) -> dict[int, Limit]:
    """RLIMIT_* number -> Limit.  Unlike prlimit(2) this needs no CAP_SYS_RESOURCE."""
    limits: dict[int, Limit] = {}
    try:
        for line in data.split(b"\n"):
            number = LIMITS.get(line[:26].rstrip())
            if number is not None:
                soft, hard = (INFINITY if word == b"unlimited" else int(word) for word in line[26:].split()[:2])
                limits[number] = Limit(soft, hard)
    except ValueError:
        raise ParseError("limits", data) from None
    return limits


class Timer(NamedTuple):
    """A POSIX timer (/proc/PID/timers).  What it is set to, only timer_gettime(2) inside the task tells."""

    id: int
    signal: int
    value: int  # sigev_value.sival_ptr
    notify: str  # "signal", "thread" or "none"
    to_thread: bool  # SIGEV_THREAD_ID: `target` is a TID
    target: int
    clock: int  # CLOCK_*; of another process or thread: negative


def parse_timers(data: bytes) -> list[Timer]:
    timers: list[Timer] = []
    try:
        fields: dict[bytes, bytes] = {}
        for line in [*data.split(b"\n"), b"ID:"]:
            key, colon, value = line.partition(b":")
            if not colon:
                continue
            if key == b"ID" and fields:
                timers.append(_timer(fields))
                fields = {}
            fields[key] = value.strip()
    except (ValueError, KeyError):
        raise ParseError("timers", data) from None
    return timers


def _timer(fields: dict[bytes, bytes]) -> Timer:
    signal, _, value = fields[b"signal"].partition(b"/")
    notify, _, rest = fields[b"notify"].partition(b"/")
    how, _, target = rest.partition(b".")
    return Timer(
        id=int(fields[b"ID"]),
        signal=int(signal),
        value=0 if value == b"(null)" else int(value, 16),
        notify=notify.decode("ascii"),
        to_thread=how == b"tid",
        target=int(target),
        clock=int(fields[b"ClockID"]),
    )


class Membership(NamedTuple):
    """One line of /proc/PID/cgroup (cgroups(7)).  Hierarchy 0 without controllers is the unified one (v2)."""

    hierarchy: int
    controllers: tuple[str, ...]  # a named one is "name=systemd"
    path: str  # in the cgroup namespace of the reader; may end in " (deleted)"


def parse_cgroup(data: bytes) -> list[Membership]:
    found: list[Membership] = []
    try:
        for line in data.split(b"\n"):
            if line:
                number, controllers, path = line.split(b":", 2)
                names = controllers.decode("utf-8", "surrogateescape").split(",") if controllers else []
                found.append(Membership(int(number), tuple(names), path.decode("utf-8", "surrogateescape")))
    except ValueError:
        raise ParseError("cgroup", data) from None
    return found


_AUXV = struct.Struct("2N")


def parse_auxv(data: bytes) -> list[tuple[int, int]]:
    """The auxiliary vector, getauxval(3), as (AT_* type, value), without AT_NULL.  Of a task with words like ours."""
    if len(data) % _AUXV.size:
        raise ParseError("auxv", data)
    return [pair for pair in _AUXV.iter_unpack(data) if pair[0]]


def parse_number(name: str, data: bytes, base: int = 10) -> int:
    """A file that holds one number: oom_score_adj, timerslack_ns, personality (base 16), loginuid, ..."""
    try:
        return int(data, base)
    except ValueError:
        raise ParseError(name, data) from None


def parse_pids(data: bytes) -> list[int]:
    """task/TID/children: PIDs separated by spaces.  The list is exact only while all of them are stopped."""
    try:
        return [int(word) for word in data.split()]
    except ValueError:
        raise ParseError("children", data) from None
