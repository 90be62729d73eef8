# SPDX-License-Identifier: Apache-2.0
"""Time limits of sockets (SO_RCVTIMEO, SO_SNDTIMEO): calls that have one are ended by any stop, and by any signal that
is caught, even with SA_RESTART (socket(7), signal(7))."""

import os
import struct
from _socket import SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET, socket

from torpor.arch.base import Arch
from torpor.kernel.process import pidfd_getfd, pidfd_open
from torpor.typed import Callable, Sequence

_RECEIVE = "read readv recv recvfrom recvmsg recvmmsg recvmmsg_time64 accept accept4".split()  # noqa: SIM905
_SEND = "write writev send sendto sendmsg sendmmsg connect".split()  # noqa: SIM905
# The same by socketcall(2), whose second argument is the address of the call's own.
_RECEIVE_BY_NUMBER, _SEND_BY_NUMBER = (5, 10, 12, 17, 18, 19), (3, 9, 11, 16, 20)


def has_time_limit(arch: Arch, pid: int, nr: int, args: Sequence[int], read: Callable[[int, int], bytes]) -> bool:
    """Whether a call is one on a socket that has a time limit for it.  `read`: memory of the task, at an address, of a
    length; it may raise OSError."""
    try:
        if nr == arch.SYSCALLS.get("socketcall"):
            nr, number = -1, args[0] & 0xFFFF
            fd = struct.unpack(arch.word, read(args[1], arch.word_size))[0]
        else:
            number, fd = 0, args[0]
        fd &= 0xFFFFFFFF
        if nr in arch.numbers_of(_RECEIVE) or number in _RECEIVE_BY_NUMBER:
            return _limit(pid, fd, SO_RCVTIMEO)
        if nr in arch.numbers_of(_SEND) or number in _SEND_BY_NUMBER:
            return _limit(pid, fd, SO_SNDTIMEO)
    except OSError:
        pass  # not a socket, or nothing
    return False


def _limit(pid: int, fd: int, option: int) -> bool:
    # Nothing but a socket is taken: to close another file for the last time may mean to wait for whoever serves it.
    if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:["):
        return False
    pidfd = pidfd_open(pid)
    try:
        opened = socket(fileno=pidfd_getfd(pidfd, fd))  # closed with the object
    finally:
        os.close(pidfd)
    return any(opened.getsockopt(SOL_SOCKET, option, 16))
