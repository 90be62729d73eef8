# SPDX-License-Identifier: Apache-2.0
"""Socket options that all families have (socket(7)), as sk_opts_entry.

Buffer sizes: the kernel doubles what is set and shows the doubled value; setting one also locks it against automatic
tuning, which SO_BUF_LOCK (5.15) tells and mends.  SO_SNDBUFFORCE goes beyond the system's limit (CAP_NET_ADMIN).
"""

import ctypes
import os
import socket
import struct
import sys

from torpor.errors import KernelError, Refusal, clean
from torpor.images.schema.sk_opts import SkOptsEntry
from torpor.kernel.syscall import call
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import SeenFile

SOL = socket.SOL_SOCKET
# include/uapi/asm-generic/socket.h
SO_REUSEADDR, SO_DONTROUTE, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE, SO_OOBINLINE = 2, 5, 6, 7, 8, 9, 10
SO_NO_CHECK, SO_PRIORITY, SO_LINGER, SO_REUSEPORT, SO_BINDTODEVICE, SO_GET_FILTER = 11, 12, 13, 15, 25, 26
SO_PASSCRED, SO_RCVLOWAT = socket.SO_PASSCRED, socket.SO_RCVLOWAT  # these have other numbers on powerpc
SO_RCVTIMEO, SO_SNDTIMEO = socket.SO_RCVTIMEO, socket.SO_SNDTIMEO
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_PASSSEC, SO_MARK, SO_BUF_LOCK = 32, 33, 34, 36, 72
_FLAGS = {
    "reuseaddr": SO_REUSEADDR,
    "so_dontroute": SO_DONTROUTE,
    "so_no_check": SO_NO_CHECK,
    "so_reuseport": SO_REUSEPORT,
    "so_broadcast": SO_BROADCAST,
    "so_keepalive": SO_KEEPALIVE,
}
_TIMES = struct.Struct("@ll")  # struct timeval


def opened(fd: int) -> socket.socket:
    """A socket object on a duplicate of `fd`: to be closed by the caller."""
    return socket.socket(fileno=os.dup(fd))


def has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def refuse_filter(seen: "SeenFile") -> None:
    """Raises Refusal for a filter program."""
    try:
        length = _filter_length(seen.fd)
    except PermissionError:
        length = 1  # one of eBPF (SO_ATTACH_BPF) is shown to nobody
    if length:
        raise seen.refusal("a filter program is attached to it", "detach it first (SO_DETACH_FILTER)")


def check(where: str, entry: SkOptsEntry) -> None:
    """Raises Refusal for a filter program, which CRIU's images may have."""
    if entry.so_filter:
        raise Refusal(where, "a filter program was attached to it, which Torpor does not restore")


def save(sock: socket.socket) -> SkOptsEntry:
    """All general options, when `refuse_filter` has found no filter program."""

    def number(option: int) -> int:
        return sock.getsockopt(SOL, option)

    send_s, send_us = _TIMES.unpack(sock.getsockopt(SOL, SO_SNDTIMEO, _TIMES.size))
    receive_s, receive_us = _TIMES.unpack(sock.getsockopt(SOL, SO_RCVTIMEO, _TIMES.size))
    on, linger = struct.unpack("=ii", sock.getsockopt(SOL, SO_LINGER, 8))
    device = sock.getsockopt(SOL, SO_BINDTODEVICE, 16).rstrip(b"\0")
    entry = SkOptsEntry(
        so_sndbuf=number(SO_SNDBUF),
        so_rcvbuf=number(SO_RCVBUF),
        so_snd_tmo_sec=send_s,
        so_snd_tmo_usec=send_us,
        so_rcv_tmo_sec=receive_s,
        so_rcv_tmo_usec=receive_us,
        so_priority=number(SO_PRIORITY),
        so_rcvlowat=number(SO_RCVLOWAT),
        so_bound_dev=os.fsdecode(device) if device else None,
        so_oobinline=number(SO_OOBINLINE),
        so_linger=linger if on else None,
    )
    for name, option in _FLAGS.items():
        setattr(entry, name, bool(number(option)))
    if mark := number(SO_MARK):
        entry.so_mark = mark
    try:
        entry.so_buf_lock = number(SO_BUF_LOCK)
    except OSError:
        pass
    return entry


def _filter_length(fd: int) -> int:
    """Instructions of the attached filter program.  SO_GET_FILTER counts in instructions, not bytes, so Python's
    getsockopt would overflow its buffer."""
    length = ctypes.create_string_buffer(4)
    call("getsockopt", fd, SOL, SO_GET_FILTER, 0, ctypes.addressof(length))
    return int.from_bytes(length.raw, sys.byteorder)


def as_int(value: int, bits: int = 32) -> int:
    """An unsigned number of an image as the C int, or long, that setsockopt(2) takes."""
    return value - (value >> bits - 1 << bits)


class OptionRefused(KernelError):
    """An option that cannot be set.  `has`: what a socket has, that has it."""

    def __init__(self, error: OSError, name: str, value: int | bytes | str) -> None:
        shown = value.hex() if isinstance(value, bytes) else value
        self.has = f"it has the option {name} with the value {shown}"
        remedy = "restore under the kernel, and with the rights, that it was dumped with"
        super().__init__(f"cannot set the option {name} of a socket to {shown}", error, remedy)


def put(sock: socket.socket, name: str, level: int, option: int, value: int | bytes) -> None:
    """Raises OptionRefused."""
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        raise OptionRefused(error, name, value) from None


def bind_to_device(sock: socket.socket, name: str) -> None:
    """Raises OptionRefused: there is no such interface."""
    try:
        sock.setsockopt(SOL, SO_BINDTODEVICE, os.fsencode(name) + b"\0")
    except OSError as error:
        raise OptionRefused(error, "SO_BINDTODEVICE", clean(name)) from None


def restore(sock: socket.socket, entry: SkOptsEntry) -> None:
    """Set all general options; to be called when the socket is bound, since binding needs SO_REUSEADDR for a while.
    Raises OptionRefused, OSError."""
    for force, plain, size in (
        (SO_SNDBUFFORCE, SO_SNDBUF, entry.so_sndbuf),
        (SO_RCVBUFFORCE, SO_RCVBUF, entry.so_rcvbuf),
    ):
        if sock.getsockopt(SOL, plain) != size:
            try:
                sock.setsockopt(SOL, force, size // 2)
            except PermissionError:
                sock.setsockopt(SOL, plain, size // 2)
    if entry.so_buf_lock is not None:
        try:
            sock.setsockopt(SOL, SO_BUF_LOCK, as_int(entry.so_buf_lock))
        except OSError:
            pass  # before 5.15: the size stays as set, which is what was asked for
    for name, option, seconds, micros in (
        ("SO_SNDTIMEO", SO_SNDTIMEO, entry.so_snd_tmo_sec, entry.so_snd_tmo_usec),
        ("SO_RCVTIMEO", SO_RCVTIMEO, entry.so_rcv_tmo_sec, entry.so_rcv_tmo_usec),
    ):
        if seconds or micros:
            put(sock, name, SOL, option, _TIMES.pack(as_int(seconds, 64), as_int(micros, 64)))
    for name, option in _FLAGS.items():
        value = getattr(entry, name)
        if value is not None:
            put(sock, name.upper(), SOL, option, int(value))
    if entry.so_priority:
        put(sock, "SO_PRIORITY", SOL, SO_PRIORITY, as_int(entry.so_priority))
    if entry.so_rcvlowat is not None and entry.so_rcvlowat != 1:
        put(sock, "SO_RCVLOWAT", SOL, SO_RCVLOWAT, as_int(entry.so_rcvlowat))
    if entry.so_mark:
        put(sock, "SO_MARK", SOL, SO_MARK, as_int(entry.so_mark))
    if entry.so_passcred:
        put(sock, "SO_PASSCRED", SOL, SO_PASSCRED, 1)
    if entry.so_passsec:
        put(sock, "SO_PASSSEC", SOL, SO_PASSSEC, 1)
    if entry.so_bound_dev:
        bind_to_device(sock, entry.so_bound_dev)
    if entry.so_oobinline:
        put(sock, "SO_OOBINLINE", SOL, SO_OOBINLINE, 1)
    if entry.so_linger is not None:
        put(sock, "SO_LINGER", SOL, SO_LINGER, struct.pack("=ii", 1, as_int(entry.so_linger)))
