# SPDX-License-Identifier: Apache-2.0
"""Holds what Linux has had since 6.1, in one process: ``novelties.py DIR``.  Creates DIR/holding when it has all, with
what there is of it on this architecture and kernel: a word of `update.LACKING` on each line.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable

from torpor.kernel.sched import SCHED_OTHER, SchedAttr, ioprio_set, sched_setattr
from torpor.kernel.syscall import call
from torpor.resources.epoll import EPIOCSPARAMS

PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, PR_SET_MEMORY_MERGE = 65, 1, 67
MFD_NOEXEC_SEAL, SO_PASSPIDFD = 8, 76
SO_TIMESTAMPING, SO_TIMESTAMPING_NEW = 37, 65
RX_SOFTWARE, SOFTWARE, OPT_ID, OPT_ID_TCP, OPT_RX_FILTER = 1 << 3, 1 << 4, 1 << 7, 1 << 16, 1 << 17  # 6.2, 6.12
BEST_EFFORT, HINT = 2 << 13, 1 << 3  # of ioprio_set(2): 6.5
FUTEX2_SIZE_U32, CLOCK_MONOTONIC = 2, 1
word = ctypes.c_uint32(0)
kept: list[object] = []


def seal() -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    call("mseal", ctypes.addressof(ctypes.c_char.from_buffer(memory)), mmap.PAGESIZE, 0)
    kept.append(memory)


def not_executable() -> None:
    ctypes.CDLL(None).memfd_create(b"novelty", MFD_NOEXEC_SEAL)


def attribute() -> None:
    os.setxattr(os.memfd_create("novelty"), "user.novelty", b"1")


def pass_pidfd() -> None:
    pair = socket.socketpair()
    kept.extend(pair)
    pair[0].setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)


def stamp(family: int, option: int, flags: int) -> None:
    """All kernels have these options, but not with all these flags."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    kept.append(sock)
    sock.setsockopt(socket.SOL_SOCKET, option, flags)


def poll_devices() -> None:
    poller = select.epoll()
    kept.append(poller)
    fcntl.ioctl(poller.fileno(), EPIOCSPARAMS, bytes([100, 0, 0, 0, 8, 0, 0, 0]))


def wait() -> None:
    call("futex_wait", ctypes.addressof(word), 0, 0xFFFFFFFF, FUTEX2_SIZE_U32, 0, CLOCK_MONOTONIC)


def wait_in_thread() -> None:
    try:
        call("futex_wait", ctypes.addressof(word), 1, 0xFFFFFFFF, FUTEX2_SIZE_U32, 0, CLOCK_MONOTONIC)
    except BlockingIOError:  # it is not 1: so there is such a call
        threading.Thread(target=wait, daemon=True).start()


NOVELTIES: dict[str, Callable[[], object]] = {
    "mseal": seal,
    "0x20": not_executable,  # F_SEAL_EXEC
    "user.novelty": attribute,
    "SO_PASSPIDFD": pass_pidfd,
    "65680": lambda: stamp(socket.AF_INET, SO_TIMESTAMPING, SOFTWARE | OPT_ID | OPT_ID_TCP),
    "131096": lambda: stamp(socket.AF_INET6, SO_TIMESTAMPING_NEW, SOFTWARE | RX_SOFTWARE | OPT_RX_FILTER),
    "131088": lambda: stamp(socket.AF_UNIX, SO_TIMESTAMPING_NEW, SOFTWARE | OPT_RX_FILTER),
    "ioprio_set": lambda: ioprio_set(0, BEST_EFFORT | HINT | 4),
    "EPIOCSPARAMS": poll_devices,
    "futex_wait": wait_in_thread,
    "time slice": lambda: sched_setattr(0, SchedAttr(SCHED_OTHER, runtime=9_000_000)),
    "PR_SET_MEMORY_MERGE": lambda: call("prctl", PR_SET_MEMORY_MERGE, 1, 0, 0, 0),
    "PR_SET_MDWE": lambda: call("prctl", PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0),
}


def main() -> None:
    had = []
    for name, have in NOVELTIES.items():
        try:
            have()
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL):
                raise
        else:
            had.append(name)
    with open(f"{sys.argv[1]}/holding.new", "w") as file:
        file.write("\n".join(had))
    os.rename(f"{sys.argv[1]}/holding.new", f"{sys.argv[1]}/holding")
    while True:
        time.sleep(1)


main()
