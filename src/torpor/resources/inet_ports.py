# SPDX-License-Identifier: Apache-2.0
"""Whether a TCP socket without a connection has the port that getsockname(2) tells.

That goes on telling a port after it was given back: of a connection that has ended, accepted from a listener whose port
it shared, and of an attempt at one that failed.  Bound again by a restore, it would be taken from whoever has it.
"""

import errno
import socket
import struct

from torpor.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.resources.context import Dump

TCP_INFO = 11
_SEGMENTS, _AT = struct.Struct("=2I"), 136  # tcpi_segs_out, tcpi_segs_in of struct tcp_info
_ANYWHERE = ("0.0.0.0", "::")


def segments(sock: socket.socket) -> tuple[int, int]:
    """How many segments it has sent and got.  None: there never was a connection, nor an attempt at one; or connect(2)
    has said that it failed, or has ended it (AF_UNSPEC), and the kernel counts from 0.  An attempt of which
    connect(2) has said nothing gets one at most, the refusal."""
    sent, got = _SEGMENTS.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, _AT + _SEGMENTS.size), _AT)
    return sent, got


def is_given_back(sock: socket.socket, dump: "Dump") -> bool:
    """Whether a closed socket without segments has no port any more.

    By bind(2), which says EINVAL where there is a port, before it looks at what it is asked for; where there is none,
    it says that the port is taken that we have, and all is as before (__inet_bind in net/ipv4/af_inet.c, and its like
    for IPv6).  But it forgets an address, so a socket that has one is not asked.
    """
    address, port, *_ = sock.getsockname()
    if not port or address not in _ANYWHERE:
        return False
    key = f"inet:taken {sock.family:d}"
    if key not in dump.state:
        dump.state[key] = taken = socket.socket(sock.family, socket.SOCK_STREAM)
        taken.bind(("", 0))
    try:
        sock.bind(dump.state[key].getsockname())
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
