# SPDX-License-Identifier: Apache-2.0
"""The rarer options of internet sockets, which CRIU's images have no place for.

What differs from a fresh socket of the same kind is kept, as numbers, in torpor-files.img.  ``level << 16 | option`` is
an option's number there.  Facts: tcp(7), udp(7), ip(7), ipv6(7), socket(7).
"""

import socket
import struct

from torpor.errors import KernelError
from torpor.resources.socket_options import as_int
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.images.schema.torpor_file import TorporFileEntry

SOL, IP, TCP, UDP, IPV6 = socket.SOL_SOCKET, 0, 6, 17, 41
TCP_CONGESTION = 13
# DEBUG, TIMESTAMP, TIMESTAMPNS, TIMESTAMPING, RXQ_OVFL, WIFI_STATUS, PEEK_OFF, NOFCS, LOCK_FILTER, SELECT_ERR_QUEUE,
# BUSY_POLL, INCOMING_CPU, ZEROCOPY, the new time stamps, PREFER_BUSY_POLL, BUSY_POLL_BUDGET, TXREHASH,
# RCVMARK, RCVPRIORITY
_SOCKET = [
    (SOL, option) for option in (1, 29, 35, 37, 40, 41, 42, 43, 44, 45, 46, 49, 60, 63, 64, 65, 69, 70, 74, 75, 82)
]
# RECVOPTS, RETOPTS, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, PASSSEC, TRANSPARENT, RECVORIGDSTADDR, MINTTL, CHECKSUM,
# BIND_ADDRESS_NO_PORT, RECVFRAGSIZE, RECVERR_RFC4884, MULTICAST_IF (an address), MULTICAST_TTL, MULTICAST_LOOP,
# MULTICAST_ALL, LOCAL_PORT_RANGE
_IP = [(IP, option) for option in (6, 7, 10, 11, 12, 13, 18, 19, 20, 21, 23, 24, 25, 26, 32, 33, 34, 49, 51)]
# For what an IPv6 socket sends to and hears from IPv4: TOS, TTL, PKTINFO, FREEBIND
_IP_BESIDES = [(IP, option) for option in (1, 2, 8, 15)]
# 2292PKTINFO, 2292HOPOPTS, 2292DSTOPTS, 2292RTHDR, 2292HOPLIMIT, FLOWINFO, UNICAST_HOPS, MULTICAST_HOPS,
# MULTICAST_LOOP, MTU_DISCOVER, RECVERR, MULTICAST_ALL, ROUTER_ALERT_ISOLATE, RECVERR_RFC4884, FLOWINFO_SEND,
# RECVPKTINFO, RECVHOPLIMIT, RECVHOPOPTS, RECVRTHDR, RECVDSTOPTS, RECVPATHMTU, DONTFRAG, RECVTCLASS, TCLASS,
# AUTOFLOWLABEL, ADDR_PREFERENCES, MINHOPCOUNT, RECVORIGDSTADDR, TRANSPARENT, RECVFRAGSIZE
_IPV6 = [
    (IPV6, option)
    for option in (
        2, 3, 4, 5, 8, 11, 16, 18, 19, 23, 25, 29, 30, 31, 33, 49,
        51, 53, 56, 58, 60, 62, 66, 67, 70, 72, 73, 74, 75, 77,
    )
]  # fmt: skip
# MAXSEG, SYNCNT, LINGER2, DEFER_ACCEPT, WINDOW_CLAMP, QUICKACK, THIN_LINEAR_TIMEOUTS, USER_TIMEOUT, FASTOPEN,
# NOTSENT_LOWAT, SAVE_SYN, FASTOPEN_CONNECT, FASTOPEN_NO_COOKIE, INQ, TX_DELAY, RTO_MAX_MS, RTO_MIN_US, DELACK_MAX_US
_TCP = [(TCP, option) for option in (2, 7, 8, 9, 10, 12, 16, 18, 23, 25, 27, 30, 34, 36, 37, 44, 45, 46)]
# CORK, ENCAP, NO_CHECK6_TX, NO_CHECK6_RX, SEGMENT, GRO
_UDP = [(UDP, option) for option in (1, 100, 101, 102, 103, 104)]
# TRANSPARENT allows to bind to addresses that are not here; FASTOPEN_CONNECT cannot be set when the socket listens.
_EARLY = frozenset({IP << 16 | 19, IPV6 << 16 | 75, TCP << 16 | 30})
# Options that are no ints, and their sizes: MAX_PACING_RATE, TXTIME; FASTOPEN_KEY; HOPOPTS, RTHDRDSTOPTS, RTHDR,
# DSTOPTS
_PACING = SOL << 16 | 47
_LONG_SOCKET = [(_PACING, struct.calcsize("L")), (SOL << 16 | 61, 8)]
_LONG_TCP = [(TCP << 16 | 33, 32)]
_LONG_IPV6 = [(IPV6 << 16 | option, 1024) for option in (54, 55, 57, 59)]
# Options whose value is the number of an interface: IPV6_MULTICAST_IF, and both UNICAST_IF, in network byte order.
_MULTICAST_IF, _UNICAST_IF = ((IPV6, 17),), ((IP, 50), (IPV6, 76))
_INTERFACES = _MULTICAST_IF + _UNICAST_IF


class Differing(NamedTuple):
    numbers: list[tuple[int, int]]
    congestion: bytes
    longs: list[tuple[int, bytes]]


_usual: "dict[tuple[int, int], tuple[dict[int, int], bytes, dict[int, bytes]]]" = {}


def _numbers(sock: socket.socket) -> list[tuple[int, int]]:
    more = _TCP if sock.type == socket.SOCK_STREAM else _UDP
    return [*_SOCKET, *_IP, *(_IP_BESIDES + _IPV6 if sock.family == socket.AF_INET6 else ()), *more, *_INTERFACES]


def _read(sock: socket.socket) -> dict[int, int]:
    """All that this kernel has."""
    found = {}
    for level, option in _numbers(sock):
        try:
            found[level << 16 | option] = sock.getsockopt(level, option)
        except OSError:
            pass  # this kernel does not know it
    return found


def _longs(sock: socket.socket) -> list[tuple[int, int]]:
    more = _LONG_TCP if sock.type == socket.SOCK_STREAM else []
    return [*_LONG_SOCKET, *more, *(_LONG_IPV6 if sock.family == socket.AF_INET6 else ())]


def _read_longs(sock: socket.socket) -> dict[int, bytes]:
    """All that this kernel has of those that are no ints."""
    found = {}
    for number, size in _longs(sock):
        try:
            found[number] = sock.getsockopt(number >> 16, number & 0xFFFF, size)
        except OSError:
            pass  # this kernel does not know it
    return found


def _congestion(sock: socket.socket) -> bytes:
    return sock.getsockopt(TCP, TCP_CONGESTION, 16).rstrip(b"\0") if sock.type == socket.SOCK_STREAM else b""


def differing(sock: socket.socket) -> "Differing":
    """The options that differ from a fresh socket's of the same kind."""
    key = (sock.family, sock.type)
    if key not in _usual:
        with socket.socket(sock.family, sock.type) as fresh:
            _usual[key] = _read(fresh), _congestion(fresh), _read_longs(fresh)
    numbers, usual, longs = _usual[key]
    congestion, get = _congestion(sock), sock.getsockopt
    found = [
        (number, value & 0xFFFFFFFF)
        for number, before in numbers.items()
        if (value := get(number >> 16, number & 0xFFFF)) != before
    ]
    differing_longs = [(number, value) for number, value in _read_longs(sock).items() if value != longs.get(number)]
    return Differing(found, congestion if congestion != usual else b"", differing_longs)


def save(options: "Differing", own: "TorporFileEntry") -> None:
    """Raises KernelError."""
    for number, value in options.numbers:
        if (number >> 16, number & 0xFFFF) in _INTERFACES:
            own.interface_options.append(number)
            own.interface_names.append(_name(_swapped(number, value)))
        else:
            own.option_numbers.append(number)
            own.option_values.append(value)
    for number, long in options.longs:
        own.long_options.append(number)
        own.long_values.append(long)
    if options.congestion:
        own.congestion = options.congestion.decode("ascii", "replace")


def _swapped(number: int, interface: int) -> int:
    """An interface's number as the option has it, or that as an interface's number."""
    return socket.htonl(interface) if (number >> 16, number & 0xFFFF) in _UNICAST_IF else interface


def _name(interface: int) -> str:
    try:
        return socket.if_indextoname(interface)
    except OSError as error:
        raise KernelError(
            f"interface {interface}, by which a socket sends, is gone", error, "close the socket"
        ) from None


def restore_early(sock: socket.socket, own: "TorporFileEntry") -> None:
    """Set what must be set before bind(2) and listen(2).  Raises KernelError."""
    for number, value in zip(own.option_numbers, own.option_values, strict=False):
        if number in _EARLY and (sock.type == socket.SOCK_STREAM or number >> 16 != TCP):
            _set(sock, number, value)


def restore(sock: socket.socket, own: "TorporFileEntry") -> None:
    """Set them again.  Raises OSError, KernelError."""
    allowed = {level << 16 | option for level, option in _numbers(sock)} | {_PACING}
    for number, value in zip(own.option_numbers, own.option_values, strict=False):
        if number in allowed and not (number in _EARLY and _has(sock, number, value)):
            _set(sock, number, value)
    sizes = dict(_longs(sock))
    for number, long in zip(own.long_options, own.long_values, strict=False):
        if number in sizes and len(long) <= sizes[number]:
            _set(sock, number, long)
    for number, name in zip(own.interface_options, own.interface_names, strict=False):
        if number in allowed:
            try:
                interface = socket.if_nametoindex(name)
            except OSError as error:
                raise KernelError(f"there is no interface {name}", error, "restore where it exists") from None
            _set(sock, number, _swapped(number, interface))
    if own.congestion and sock.type == socket.SOCK_STREAM:
        sock.setsockopt(TCP, TCP_CONGESTION, own.congestion.encode("ascii", "replace"))


def _has(sock: socket.socket, number: int, value: int) -> bool:
    return sock.getsockopt(number >> 16, number & 0xFFFF) & 0xFFFFFFFF == value


def _set(sock: socket.socket, number: int, value: int | bytes) -> None:
    level, option = number >> 16, number & 0xFFFF
    try:
        sock.setsockopt(level, option, value if isinstance(value, bytes) else as_int(value))
    except OSError as error:
        text = value.hex() if isinstance(value, bytes) else value
        what = f"cannot set option {option} of level {level} of an internet socket to {text}"
        raise KernelError(
            what, error, "restore under the kernel, and with the rights, that it was dumped with"
        ) from None
