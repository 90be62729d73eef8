# SPDX-License-Identifier: Apache-2.0
"""The rarer options of internet sockets, which CRIU's images have no place for.

What differs from a fresh socket of the same kind is kept, as numbers, in torpor-files.img.  ``level << 16 | option`` is
an option's number there.  Facts: tcp(7), udp(7), ip(7), ipv6(7), socket(7).
"""

import socket

from torpor.resources.socket_options import as_int
from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.images.schema.torpor_file import TorporFileEntry

SOL, IP, TCP, UDP, IPV6 = socket.SOL_SOCKET, 0, 6, 17, 41
TCP_CONGESTION = 13
# SO_TIMESTAMP, SO_RXQ_OVFL, SO_BUSY_POLL, SO_INCOMING_CPU
_SOCKET = [(SOL, option) for option in (29, 40, 46, 49)]
# MULTICAST_TTL, MULTICAST_LOOP, MULTICAST_ALL, RECVTTL, RECVTOS, RECVERR, MTU_DISCOVER, BIND_ADDRESS_NO_PORT
_IP = [(IP, option) for option in (33, 34, 49, 12, 13, 11, 10, 24)]
# UNICAST_HOPS, MULTICAST_HOPS, MULTICAST_LOOP, TCLASS, RECVPKTINFO, RECVHOPLIMIT, RECVTCLASS, RECVERR, MTU_DISCOVER
_IPV6 = [(IPV6, option) for option in (16, 18, 19, 67, 49, 51, 66, 25, 23)]
# MAXSEG, SYNCNT, LINGER2, DEFER_ACCEPT, WINDOW_CLAMP, USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT
_TCP = [(TCP, option) for option in (2, 7, 8, 9, 10, 18, 23, 25)]
# SEGMENT, GRO
_UDP = [(UDP, option) for option in (103, 104)]

_usual: dict[tuple[int, int], tuple[dict[int, int], bytes]] = {}


def _numbers(sock: socket.socket) -> list[tuple[int, int]]:
    more = _TCP if sock.type == socket.SOCK_STREAM else _UDP
    return _SOCKET + (_IP if sock.family == socket.AF_INET else _IPV6) + more


def _read(sock: socket.socket) -> dict[int, int]:
    found = {}
    for level, option in _numbers(sock):
        try:
            found[level << 16 | option] = sock.getsockopt(level, option) & 0xFFFFFFFF
        except OSError:
            pass  # this kernel does not know it
    return found


def _congestion(sock: socket.socket) -> bytes:
    return sock.getsockopt(TCP, TCP_CONGESTION, 16).rstrip(b"\0") if sock.type == socket.SOCK_STREAM else b""


def save(sock: socket.socket, own: "TorporFileEntry | None") -> "list[tuple[int, int]]":
    """The options that differ from a fresh socket's; with `own` they are entered there."""
    key = (sock.family, sock.type)
    if key not in _usual:
        with socket.socket(sock.family, sock.type) as fresh:
            _usual[key] = _read(fresh), _congestion(fresh)
    numbers, congestion = _usual[key]
    differing = [(number, value) for number, value in _read(sock).items() if numbers.get(number) != value]
    if own is not None:
        for number, value in differing:
            own.option_numbers.append(number)
            own.option_values.append(value)
        if _congestion(sock) != congestion:
            own.congestion = _congestion(sock).decode("ascii", "replace")
    return differing


def differs(sock: socket.socket) -> bool:
    """Whether there is anything to keep."""
    return bool(save(sock, None)) or _congestion(sock) != _usual[sock.family, sock.type][1]


def restore(sock: socket.socket, own: "TorporFileEntry") -> None:
    """Set them again.  Raises OSError."""
    allowed = {level << 16 | option for level, option in _numbers(sock)}
    for number, value in zip(own.option_numbers, own.option_values, strict=False):
        if number in allowed:
            sock.setsockopt(number >> 16, number & 0xFFFF, as_int(value))
    if own.congestion and sock.type == socket.SOCK_STREAM:
        sock.setsockopt(TCP, TCP_CONGESTION, own.congestion.encode("ascii", "replace"))
