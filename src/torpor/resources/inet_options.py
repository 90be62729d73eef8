# SPDX-License-Identifier: Apache-2.0
"""The rarer options of internet sockets, which CRIU's images have no place for.

What differs from a fresh socket of the same kind is kept, as numbers, in torpor-files.img.  ``level << 16 | option`` is
an option's number there.  Facts: tcp(7), udp(7), ip(7), ipv6(7), socket(7).
"""

import errno
import os
import socket
import struct

from torpor.errors import KernelError, clean
from torpor.resources.socket_options import OptionRefused, as_int, put
from torpor.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torpor.images.schema.torpor_file import TorporFileEntry

SOL, IP, TCP, UDP, IPV6 = socket.SOL_SOCKET, 0, 6, 17, 41
TCP_CONGESTION = 13


def _level(level: int, **options: int) -> dict[int, str]:
    """Names by number."""
    return {level << 16 | option: name for name, option in options.items()}


_SOCKET = _level(
    SOL, SO_DEBUG=1, SO_TIMESTAMP=29, SO_TIMESTAMPNS=35, SO_TIMESTAMPING=37, SO_RXQ_OVFL=40, SO_WIFI_STATUS=41,
    SO_PEEK_OFF=42, SO_NOFCS=43, SO_LOCK_FILTER=44, SO_SELECT_ERR_QUEUE=45, SO_BUSY_POLL=46, SO_INCOMING_CPU=49,
    SO_ZEROCOPY=60, SO_TIMESTAMP_NEW=63, SO_TIMESTAMPNS_NEW=64, SO_TIMESTAMPING_NEW=65, SO_PREFER_BUSY_POLL=69,
    SO_BUSY_POLL_BUDGET=70, SO_TXREHASH=74, SO_RCVMARK=75, SO_RCVPRIORITY=82,
)  # fmt: skip
_IP = _level(
    IP, IP_RECVOPTS=6, IP_RETOPTS=7, IP_MTU_DISCOVER=10, IP_RECVERR=11, IP_RECVTTL=12, IP_RECVTOS=13, IP_PASSSEC=18,
    IP_TRANSPARENT=19, IP_RECVORIGDSTADDR=20, IP_MINTTL=21, IP_CHECKSUM=23, IP_BIND_ADDRESS_NO_PORT=24,
    IP_RECVFRAGSIZE=25, IP_RECVERR_RFC4884=26,
    IP_MULTICAST_IF=32,  # an address
    IP_MULTICAST_TTL=33, IP_MULTICAST_LOOP=34, IP_MULTICAST_ALL=49, IP_LOCAL_PORT_RANGE=51,
)  # fmt: skip
# For what an IPv6 socket sends to and hears from IPv4; of one of IPv4 CRIU's images have them.
_IP_BESIDES = _level(IP, IP_TOS=1, IP_TTL=2, IP_PKTINFO=8, IP_FREEBIND=15)
_IPV6 = _level(
    IPV6, IPV6_2292PKTINFO=2, IPV6_2292HOPOPTS=3, IPV6_2292DSTOPTS=4, IPV6_2292RTHDR=5, IPV6_2292HOPLIMIT=8,
    IPV6_FLOWINFO=11, IPV6_UNICAST_HOPS=16, IPV6_MULTICAST_HOPS=18, IPV6_MULTICAST_LOOP=19, IPV6_MTU_DISCOVER=23,
    IPV6_RECVERR=25, IPV6_MULTICAST_ALL=29, IPV6_ROUTER_ALERT_ISOLATE=30, IPV6_RECVERR_RFC4884=31,
    IPV6_FLOWINFO_SEND=33, IPV6_RECVPKTINFO=49, IPV6_RECVHOPLIMIT=51, IPV6_RECVHOPOPTS=53, IPV6_RECVRTHDR=56,
    IPV6_RECVDSTOPTS=58, IPV6_RECVPATHMTU=60, IPV6_DONTFRAG=62, IPV6_RECVTCLASS=66, IPV6_TCLASS=67,
    IPV6_AUTOFLOWLABEL=70, IPV6_ADDR_PREFERENCES=72, IPV6_MINHOPCOUNT=73, IPV6_RECVORIGDSTADDR=74, IPV6_TRANSPARENT=75,
    IPV6_RECVFRAGSIZE=77,
)  # fmt: skip
_TCP = _level(
    TCP, TCP_MAXSEG=2, TCP_SYNCNT=7, TCP_LINGER2=8, TCP_DEFER_ACCEPT=9, TCP_WINDOW_CLAMP=10, TCP_QUICKACK=12,
    TCP_THIN_LINEAR_TIMEOUTS=16, TCP_USER_TIMEOUT=18, TCP_FASTOPEN=23, TCP_NOTSENT_LOWAT=25, TCP_SAVE_SYN=27,
    TCP_FASTOPEN_CONNECT=30, TCP_FASTOPEN_NO_COOKIE=34, TCP_INQ=36, TCP_TX_DELAY=37, TCP_RTO_MAX_MS=44,
    TCP_RTO_MIN_US=45, TCP_DELACK_MAX_US=46,
)  # fmt: skip
_UDP = _level(UDP, UDP_CORK=1, UDP_ENCAP=100, UDP_NO_CHECK6_TX=101, UDP_NO_CHECK6_RX=102, UDP_SEGMENT=103, UDP_GRO=104)
# Options whose value is the number of an interface, the latter in network byte order.
_MULTICAST_IF = _level(IPV6, IPV6_MULTICAST_IF=17)
_UNICAST_IF = _level(IP, IP_UNICAST_IF=50) | _level(IPV6, IPV6_UNICAST_IF=76)
_INTERFACES = _MULTICAST_IF | _UNICAST_IF
# Options that are no ints.
_LONG_SOCKET = _level(SOL, SO_MAX_PACING_RATE=47, SO_TXTIME=61)
_LONG_TCP = _level(TCP, TCP_FASTOPEN_KEY=33)
_LONG_IPV6 = _level(IPV6, IPV6_HOPOPTS=54, IPV6_RTHDRDSTOPTS=55, IPV6_RTHDR=57, IPV6_DSTOPTS=59)
_NAMES = _SOCKET | _IP | _IP_BESIDES | _IPV6 | _TCP | _UDP | _INTERFACES | _LONG_SOCKET | _LONG_TCP | _LONG_IPV6
_PACING = SOL << 16 | 47
_SIZES = {_PACING: struct.calcsize("L"), SOL << 16 | 61: 8, TCP << 16 | 33: 32} | dict.fromkeys(_LONG_IPV6, 1024)
# TRANSPARENT allows to bind to addresses that are not here; FASTOPEN_CONNECT cannot be set when the socket listens.
_EARLY = frozenset({IP << 16 | 19, IPV6 << 16 | 75, TCP << 16 | 30})


class Differing(NamedTuple):
    numbers: list[tuple[int, int]]
    congestion: bytes
    longs: list[tuple[int, bytes]]


_usual: "dict[tuple[int, int], tuple[dict[int, int], bytes, dict[int, bytes]]]" = {}


def _numbers(sock: socket.socket) -> dict[int, str]:
    known = _SOCKET | _IP | (_TCP if sock.type == socket.SOCK_STREAM else _UDP) | _INTERFACES
    return known | _IP_BESIDES | _IPV6 if sock.family == socket.AF_INET6 else known


def _read(sock: socket.socket) -> dict[int, int]:
    """All that this kernel has."""
    found = {}
    for number in _numbers(sock):
        try:
            found[number] = sock.getsockopt(number >> 16, number & 0xFFFF)
        except OSError:
            pass  # this kernel does not know it
    return found


def _longs(sock: socket.socket) -> dict[int, str]:
    known = _LONG_SOCKET | _LONG_TCP if sock.type == socket.SOCK_STREAM else _LONG_SOCKET
    return known | _LONG_IPV6 if sock.family == socket.AF_INET6 else known


def _read_longs(sock: socket.socket) -> dict[int, bytes]:
    """All that this kernel has of those that are no ints."""
    found = {}
    for number in _longs(sock):
        try:
            found[number] = sock.getsockopt(number >> 16, number & 0xFFFF, _SIZES[number])
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
    found_longs = [
        (number, long)
        for number, usual_long in longs.items()
        if (long := get(number >> 16, number & 0xFFFF, _SIZES[number])) != usual_long
    ]
    return Differing(found, congestion if congestion != usual else b"", found_longs)


def save(options: "Differing", own: "TorporFileEntry") -> None:
    """Raises KernelError."""
    for number, value in options.numbers:
        if number in _INTERFACES:
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
    return socket.htonl(interface) if number in _UNICAST_IF else interface


def _name(interface: int) -> str:
    try:
        return socket.if_indextoname(interface)
    except OSError as error:
        raise KernelError(
            f"interface {interface}, by which a socket sends, is gone", error, "close the socket"
        ) from None


def early(own: "TorporFileEntry") -> list[tuple[int, int]]:
    """What must be set before bind(2) and listen(2), by number."""
    return [one for one in zip(own.option_numbers, own.option_values, strict=False) if one[0] in _EARLY]


def restore_early(sock: socket.socket, own: "TorporFileEntry") -> None:
    """Set that.  Raises OptionRefused."""
    for number, value in early(own):
        if sock.type == socket.SOCK_STREAM or number >> 16 != TCP:
            _set(sock, number, value)


def restore(sock: socket.socket, own: "TorporFileEntry") -> None:
    """Set them again.  Raises OptionRefused."""
    allowed = _numbers(sock).keys() | {_PACING}
    for number, value in zip(own.option_numbers, own.option_values, strict=False):
        if number in allowed and not (number in _EARLY and _has(sock, number, value)):
            _set(sock, number, value)
    longs = _longs(sock)
    for number, long in zip(own.long_options, own.long_values, strict=False):
        if number in longs and len(long) <= _SIZES[number]:
            _set(sock, number, long)
    for number, name in zip(own.interface_options, own.interface_names, strict=False):
        if number in allowed:
            try:
                interface = socket.if_nametoindex(name)
            except (OSError, ValueError):  # it has no number
                none = OSError(errno.ENODEV, os.strerror(errno.ENODEV))
                raise OptionRefused(none, _INTERFACES[number], clean(name)) from None
            _set(sock, number, _swapped(number, interface))
    if own.congestion and sock.type == socket.SOCK_STREAM:
        try:
            sock.setsockopt(TCP, TCP_CONGESTION, own.congestion.encode("ascii", "replace"))
        except OSError as error:
            failed = OptionRefused(error, "TCP_CONGESTION", clean(own.congestion))
            failed.has = f"its congestion control is {clean(own.congestion)}"
            raise failed from None


def try_all(sock: socket.socket, own: "TorporFileEntry") -> None:
    """All of them, on a fresh socket.  Raises OptionRefused."""
    restore_early(sock, own)
    restore(sock, own)


def _has(sock: socket.socket, number: int, value: int) -> bool:
    return sock.getsockopt(number >> 16, number & 0xFFFF) & 0xFFFFFFFF == value


def _set(sock: socket.socket, number: int, value: int | bytes) -> None:
    put(sock, _NAMES[number], number >> 16, number & 0xFFFF, value if isinstance(value, bytes) else as_int(value))
