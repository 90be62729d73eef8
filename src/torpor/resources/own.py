# SPDX-License-Identifier: Apache-2.0
"""What Torpor itself is: the rights, limits and settings that a task made by it starts with.

A restored task inherits all of this, so a program only has to change what differs, and whatever the images ask for
beyond it cannot be given.
"""

import ctypes
import os

from torpor.kernel.proc import Limit, parse_limits, parse_number
from torpor.kernel.process import prctl
from torpor.kernel.procfs import read_all
from torpor.kernel.sched import SchedAttr, ioprio_get, sched_getattr
from torpor.kernel.status import Credentials, parse_status
from torpor.kernel.syscall import call
from torpor.typed import NamedTuple

PR_GET_SECUREBITS, PR_GET_TIMERSLACK = 27, 30

# linux/capability.h, in the order of the numbers.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_RAWIO, CAP_SYS_NICE, CAP_SYS_RESOURCE = 6, 7, 8, 17, 23, 24
CAP_AUDIT_CONTROL, CAP_WAKE_ALARM = 30, 35


def capability_names(mask: int) -> str:
    """ "CAP_KILL, CAP_SETGID" """
    return ", ".join(
        f"CAP_{CAPABILITIES[n]}" if n < len(CAPABILITIES) else f"capability {n}" for n in range(64) if mask >> n & 1
    )


class Facts(NamedTuple):
    credentials: Credentials
    securebits: int
    limits: dict[int, Limit]
    sched: SchedAttr
    io_priority: int
    timer_slack: int
    cpus: bytes
    oom_score_adj: int
    loginuid: int | None
    coredump_filter: int | None

    def has(self, capability: int) -> bool:
        return bool(self.credentials.effective >> capability & 1)


_facts: tuple[int, Facts] | None = None


def facts() -> Facts:
    """Of this process; read once (the engine is a process of its own for each dump or restore)."""
    global _facts
    if _facts is None or _facts[0] != os.getpid():
        _facts = (
            os.getpid(),
            Facts(
                credentials=parse_status(read_all("/proc/self/status")).credentials,
                securebits=prctl(PR_GET_SECUREBITS),
                limits=parse_limits(read_all("/proc/self/limits")),
                sched=sched_getattr(0),
                io_priority=ioprio_get(0),
                timer_slack=prctl(PR_GET_TIMERSLACK),
                cpus=get_affinity(0),
                oom_score_adj=parse_number("oom_score_adj", read_all("/proc/self/oom_score_adj")),
                loginuid=number_file("/proc/self/loginuid"),
                coredump_filter=number_file("/proc/self/coredump_filter", 16),
            ),
        )
    return _facts[1]


def number_file(path: str, base: int = 10) -> int | None:
    """A number from a file of /proc that not every kernel has."""
    try:
        return parse_number(path, read_all(path), base)
    except FileNotFoundError:
        return None


_cpus = ctypes.create_string_buffer(8192)
_cpus_at = ctypes.addressof(_cpus)


def get_affinity(tid: int) -> bytes:
    """sched_getaffinity(2): bit n of the little-endian number for CPU n, without zero bytes at the end."""
    return ctypes.string_at(_cpus_at, call("sched_getaffinity", tid, len(_cpus), _cpus_at)).rstrip(b"\0")


def set_affinity(tid: int, cpus: bytes) -> None:
    """sched_setaffinity(2).  EINVAL: none of these CPUs is here (any more)."""
    padded = cpus.ljust((len(cpus) + 7) & ~7, b"\0")
    buffer = ctypes.create_string_buffer(padded, len(padded))
    call("sched_setaffinity", tid, len(padded), ctypes.addressof(buffer))
