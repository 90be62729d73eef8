# SPDX-License-Identifier: Apache-2.0
"""How a thread is scheduled: policy, priority, nice value, I/O priority (sched(7), sched_setattr(2), ioprio_set(2)).

All of it belongs to the thread, not the process.  sched_setattr sets nice and real-time priority in one go, but for
SCHED_OTHER wants priority 0, and for SCHED_FIFO ignores nice.  What was never set reads as ioprio class NONE.
"""

import ctypes
import struct

from torpor.kernel.syscall import call
from torpor.typed import NamedTuple

SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE, SCHED_DEADLINE, SCHED_EXT = 0, 1, 2, 3, 5, 6, 7
SCHED_FLAG_RESET_ON_FORK = 1

IOPRIO_WHO_PROCESS = 1  # one thread, in spite of its name
PRIO_PROCESS = 0  # the same

_ATTR = struct.Struct("=IIQiIQQQII")  # struct sched_attr, SCHED_ATTR_SIZE_VER1


class SchedAttr(NamedTuple):
    """struct sched_attr (include/uapi/linux/sched/types.h); times in nanoseconds."""

    policy: int  # SCHED_*
    flags: int = 0  # SCHED_FLAG_*
    nice: int = 0
    priority: int = 0  # of SCHED_FIFO and SCHED_RR
    runtime: int = 0  # of SCHED_DEADLINE; of SCHED_OTHER the slice (6.12)
    deadline: int = 0
    period: int = 0
    util_min: int = 0  # utilisation clamps; 0 to 1024, where the kernel has them
    util_max: int = 0


def sched_getattr(tid: int) -> SchedAttr:
    """sched_getattr(2) (3.14).  Kernels before 5.3 fill in less; the rest reads as 0."""
    buffer = ctypes.create_string_buffer(_ATTR.size)
    call("sched_getattr", tid, ctypes.addressof(buffer), _ATTR.size, 0)
    return SchedAttr._make(_ATTR.unpack(buffer.raw)[1:])


def sched_setattr(tid: int, attr: SchedAttr) -> None:
    """sched_setattr(2).  EPERM: needs CAP_SYS_NICE; EBUSY: no bandwidth left for SCHED_DEADLINE."""
    buffer = ctypes.create_string_buffer(_ATTR.pack(_ATTR.size, *attr), _ATTR.size)
    call("sched_setattr", tid, ctypes.addressof(buffer), 0)


def getpriority(tid: int) -> int:
    """The nice value of a thread: getpriority(2) in the kernel's own terms answers 20 - nice."""
    return 20 - call("getpriority", PRIO_PROCESS, tid)


def ioprio_get(tid: int) -> int:
    """ioprio_get(2) of a thread: class << 13 | hint << 3 | level."""
    return call("ioprio_get", IOPRIO_WHO_PROCESS, tid)


def ioprio_set(tid: int, ioprio: int) -> None:
    """ioprio_set(2) of a thread."""
    call("ioprio_set", IOPRIO_WHO_PROCESS, tid, ioprio)


def online_cpus() -> bytes:
    """All that run, as `torpor.resources.own.get_affinity` gives them; nothing where the kernel does not tell."""
    try:
        with open("/sys/devices/system/cpu/online", "rb") as file:
            ranges = [part.split(b"-") for part in file.read().strip().split(b",")]
    except OSError:
        return b""
    mask = sum((1 << int(part[-1]) + 1) - (1 << int(part[0])) for part in ranges if part[0])
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")
